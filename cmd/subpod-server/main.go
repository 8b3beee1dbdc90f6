// Command subpod-server is the CRI server that runs inside the node. "subpod
// daemon" starts it there. It is a program of its own, so that the commands of
// subpod, which start often, stay small.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os/signal"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/subpod/subpod/cmd/internal/cli"
	"github.com/subpod/subpod/cmd/internal/doctor"
	"github.com/subpod/subpod/netns"
	"github.com/subpod/subpod/pkg/config"
	"github.com/subpod/subpod/pkg/logging"
	"github.com/subpod/subpod/rootless"
	"github.com/subpod/subpod/storage"
)

// version is set by the build: -ldflags "-X main.version=…".
var version string

func main() {
	rootless.Dispatch()
	netns.Dispatch()
	storage.Dispatch()
	// What was inherited by mistake is for no conmon, runtime or container.
	_ = unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC)
	err := newRoot().Execute()
	if err == nil {
		logging.Exit(0, "")
	}
	last := ""
	var logged loggedError
	if !errors.As(err, &logged) {
		last = fmt.Sprintln("subpod-server:", err)
	}
	logging.Exit(exitCode(err), last)
}

// loggedError is an error that the log has, in its format and with its priority.
type loggedError struct{ error }

// Unwrap returns the error.
func (e loggedError) Unwrap() error { return e.error }

// exitCode is rootless.ExitConfig for a configuration that cannot be used, under a
// supervisor that does not end the node for it once a server has served.
func exitCode(err error) int {
	var refused configError
	if errors.As(err, &refused) && refused.saved.file != "" {
		return rootless.ExitConfig
	}
	return 1
}

// configError is the error of a configuration that cannot be used.
type configError struct {
	saved saved
	error
}

// Unwrap returns the error.
func (e configError) Unwrap() error { return e.error }

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
		return serve(cmd.Context(), flags)
	}
	return cmd
}

// serve chooses the configuration and serves until SIGTERM or SIGINT.
func serve(ctx context.Context, flags *cli.Flags) error {
	var s saved
	s.file, s.use = rootless.SavedConfig()
	rootless.Held()
	runDir, dataDir := s.nodeDirs()
	cfg, degraded, err := s.choose(func() (*config.Config, error) {
		cfg, err := flags.Load()
		if err == nil {
			err = checkNode(cfg, runDir, dataDir)
		}
		return cfg, err
	})
	if errors.Is(err, config.ErrInvalid) {
		return configError{s, err}
	}
	if err != nil {
		return err
	}
	log, level, err := cli.NewLog(cfg)
	if err != nil {
		return err
	}
	slog.SetDefault(log)
	klog.SetSlogLogger(log) // of the streaming library
	if degraded != "" {
		slog.Error("the configuration on disk is not used", "reason", degraded)
	}
	node, err := rootless.Load(cfg.Daemon.RunDir)
	if err != nil {
		return err
	}
	if !node.Inside {
		return errors.New("the server runs inside the node only: use \"subpod daemon\"")
	}
	ctx, stop := signal.NotifyContext(ctx, unix.SIGTERM, unix.SIGINT)
	defer stop()
	if degraded == "" {
		s.keepFailure(nil)
	}
	served := false
	err = runServer(ctx, cfg, degraded, node, level, func() {
		served = true
		s.served(node, cfg, degraded)
	})
	if err == nil {
		return nil
	}
	if !served && ctx.Err() != nil {
		slog.Debug("the server was stopped while it started", "error", err)
		return nil
	}
	if !served && degraded == "" {
		s.keepFailure(err)
	}
	slog.Error("the server cannot serve", "error", err)
	return loggedError{err}
}

// probeOverlay prints what "subpod doctor" asks for: that program does not link
// containers/storage.
func probeOverlay(cmd *cobra.Command, dir, mountProgram string) error {
	found, err := storage.Probe(cmd.Context(), dir, mountProgram)
	if err != nil {
		return err
	}
	return json.NewEncoder(cmd.OutOrStdout()).Encode(found)
}
