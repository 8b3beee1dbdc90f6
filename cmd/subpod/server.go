package main

import (
	"context"

	"github.com/subpod/subpod/pkg/config"
	"github.com/subpod/subpod/rootless"
)

// runServer serves until ctx ends.
func runServer(ctx context.Context, _ *config.Config, _ *rootless.Node) error {
	if err := rootless.Notify("READY=1"); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}
