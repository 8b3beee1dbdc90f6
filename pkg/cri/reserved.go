package cri

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc/metadata"

	"github.com/subpod/subpod/pkg/api"
)

// checkReserved rejects labels and annotations that the server acts on, unless the
// request is one of subpod's own commands: a kubelet passes on those of a pod's author,
// who could have pods removed and users changed by them. errdefs.ErrInvalidArgument.
func checkReserved(ctx context.Context, maps ...map[string]string) error {
	key := api.Reserved(maps...)
	if key == "" || len(metadata.ValueFromIncomingContext(ctx, api.CommandHeader)) > 0 {
		return nil
	}
	return fmt.Errorf("%w: %s is reserved for subpod's own commands; remove it from the labels and annotations", errdefs.ErrInvalidArgument, key)
}
