package control

import (
	"github.com/subpod/subpod/pkg/api"
	"github.com/subpod/subpod/pkg/oci"
	"github.com/subpod/subpod/pkg/pod"
	"github.com/subpod/subpod/pkg/pod/container"
	"github.com/subpod/subpod/pkg/rpc"
	"github.com/subpod/subpod/storage"
)

// Reasons returns what subpod's own client distinguishes where one gRPC code has several
// meanings. It holds for calls of the CRI as well.
func Reasons() []rpc.Reason {
	return []rpc.Reason{
		{Err: oci.ErrCommandNotFound, Reason: api.ReasonCommandNotFound},
		{Err: oci.ErrCommandNotExecutable, Reason: api.ReasonCommandNotExecutable},
		{Err: storage.ErrImageNotFound, Reason: api.ReasonImageNotFound},
		{Err: container.ErrForeignImage, Reason: api.ReasonForeignImage},
		{Err: storage.ErrNotLoggedIn, Reason: api.ReasonNotLoggedIn},
		{Err: pod.ErrNameTaken, Reason: api.ReasonNameTaken},
	}
}
