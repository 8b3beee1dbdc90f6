package main

import (
	"fmt"
	"io"

	"github.com/subpod/subpod/cmd/internal/cli"
	"github.com/subpod/subpod/pkg/config"
	"github.com/subpod/subpod/rootless"
)

// clientConfig returns the configuration for a command that talks to the running
// daemon. While the one on disk cannot be used it is the one that this daemon serves
// with, and warn is told why: a mistake in a file keeps nobody from the containers that
// run. The error is that of cli.Flags.Load.
func clientConfig(flags *cli.Flags, warn io.Writer) (*config.Config, error) {
	cfg, err := flags.Load()
	if err == nil {
		return cfg, nil
	}
	served, notServed := servedConfig(flags)
	if notServed != nil {
		return nil, err
	}
	fmt.Fprintf(warn, "subpod: warning: %v; using the configuration that the daemon serves with\n", err)
	return served, nil
}

// servedConfig returns the configuration with which the daemon of the default run
// directory, or of --run, serves.
func servedConfig(flags *cli.Flags) (*config.Config, error) {
	runDir, err := flags.RunDir()
	if err != nil {
		return nil, err
	}
	node, err := rootless.Load(runDir)
	if err != nil {
		return nil, err
	}
	return config.LoadSaved(node.ServedConfig())
}
