package cri

import (
	crierrors "k8s.io/cri-api/pkg/errors"

	"github.com/subpod/subpod/pkg/ocispec"
	"github.com/subpod/subpod/pkg/pod/container"
	"github.com/subpod/subpod/pkg/rpc"
	"github.com/subpod/subpod/storage"
)

// TypedErrors returns the errors that the kubelet recognizes by their text
// (k8s.io/cri-api/pkg/errors).
func TypedErrors() []rpc.Typed {
	return []rpc.Typed{
		{Err: storage.ErrRegistryUnavailable, Prefix: crierrors.ErrRegistryUnavailable},
		{Err: storage.ErrSignature, Prefix: crierrors.ErrSignatureValidationFailed},
		{Err: container.ErrImageVolume, Prefix: crierrors.ErrImageVolumeMountFailed},
		{Err: ocispec.ErrRecursiveReadOnly, Prefix: crierrors.ErrRROUnsupported},
	}
}
