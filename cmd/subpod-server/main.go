// Command subpod-server is the CRI server that runs inside the node. "subpod
// daemon" starts it there. It is a program of its own so that the commands of
// subpod, which start often, need not carry it.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/subpod/subpod/cmd/internal/cli"
	"github.com/subpod/subpod/cmd/internal/doctor"
	"github.com/subpod/subpod/netns"
	"github.com/subpod/subpod/pkg/config"
	"github.com/subpod/subpod/rootless"
	"github.com/subpod/subpod/storage"
)

// version is set by the build: -ldflags "-X main.version=…".
var version string

func main() {
	rootless.Dispatch()
	netns.Dispatch()
	storage.Dispatch()
	err := newRoot().Execute()
	if err == nil {
		return
	}
	fmt.Fprintln(os.Stderr, "subpod-server:", err)
	if errors.Is(err, config.ErrInvalid) {
		os.Exit(rootless.ExitConfig)
	}
	os.Exit(1)
}

func newRoot() *cobra.Command {
	cmd := &cobra.Command{
		Use:           "subpod-server",
		Short:         "Serve CRI inside the node (started by \"subpod daemon\")",
		Version:       cli.Version(version),
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
	}
	var probeDir, mountProgram string
	cmd.Flags().StringVar(&probeDir, strings.TrimPrefix(doctor.ProbeFlag, "--"), "", "try the overlays below this directory, as root of a user namespace")
	cmd.Flags().StringVar(&mountProgram, "mount-program", "", "fuse-overlayfs, for the former")
	flags := cli.AddFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if probeDir != "" {
			return probeOverlay(cmd, probeDir, mountProgram)
		}
		cfg, err := flags.Load()
		if err != nil {
			return err
		}
		log, err := cli.NewLog(cfg)
		if err != nil {
			return err
		}
		slog.SetDefault(log)
		klog.SetSlogLogger(log) // of the streaming library
		node, err := rootless.Load(cfg.Daemon.RunDir)
		if err != nil {
			return err
		}
		if !node.Inside {
			return errors.New("the server runs inside the node only: use \"subpod daemon\"")
		}
		ctx, stop := signal.NotifyContext(cmd.Context(), unix.SIGTERM, unix.SIGINT)
		defer stop()
		return runServer(ctx, cfg, node)
	}
	return cmd
}

// probeOverlay prints what "subpod doctor" asks for: that program does not know
// containers/storage.
func probeOverlay(cmd *cobra.Command, dir, mountProgram string) error {
	found, err := storage.Probe(cmd.Context(), dir, mountProgram)
	if err != nil {
		return err
	}
	return json.NewEncoder(cmd.OutOrStdout()).Encode(found)
}
