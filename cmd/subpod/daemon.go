package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"

	"github.com/subpod/subpod/pkg/config"
	"github.com/subpod/subpod/rootless"
)

func newDaemon(flags *configFlags) *cobra.Command {
	return &cobra.Command{
		Use:   "daemon",
		Short: "Make the node and serve CRI in it",
		Long: `Makes the node (user, mount, PID and network namespaces) and runs the CRI
server in it, again and again if it must. SIGTERM stops both and everything in
the node; SIGHUP, or "subpod reload", restarts the server only.`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			cfg, err := flags.load()
			if err != nil {
				return err
			}
			node, err := nodeConfig(cfg, flags)
			if err != nil {
				return err
			}
			return rootless.Exec(node)
		},
	}
}

// nodeConfig turns the configuration into that of the node.
func nodeConfig(cfg *config.Config, flags *configFlags) (rootless.Config, error) {
	level, err := logLevel(cfg)
	if err != nil {
		return rootless.Config{}, err
	}
	exe, err := ownPath()
	if err != nil {
		return rootless.Config{}, err
	}
	args, err := flags.args()
	if err != nil {
		return rootless.Config{}, err
	}
	c := rootless.Config{
		RunDir:              cfg.Daemon.RunDir,
		DataDir:             cfg.Daemon.DataDir,
		Uplink:              cfg.Node.Uplink,
		MTU:                 cfg.Node.MTU,
		SlirpBinary:         cfg.Node.Slirp4netnsPath,
		PastaBinary:         cfg.Node.PastaPath,
		DisableHostLoopback: cfg.Node.DisableHostLoopback,
		Binds:               rootless.DefaultBinds(cfg.Daemon.DataDir),
		HostCgroupNS:        cfg.Runtime.CgroupManager == "systemd",
		Server:              append([]string{exe, "server"}, args...),
		LogLevel:            level,
		LogJSON:             cfg.Daemon.LogFormat == "json",
	}
	if len(cfg.Node.CopyUp) > 0 {
		c.CopyUp = cfg.Node.CopyUp
	}
	for _, b := range cfg.Node.Binds {
		c.Binds = append(c.Binds, rootless.Bind(b))
	}
	return c, nil
}

// ownPath is the path by which this program was called, so that an upgrade that
// moves a link is seen by the next start of the server.
func ownPath() (string, error) {
	exe, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find this program: %w", err)
	}
	called, err := exec.LookPath(os.Args[0])
	if err != nil {
		return exe, nil
	}
	a, errA := os.Stat(called)
	b, errB := os.Stat(exe)
	if errA != nil || errB != nil || !os.SameFile(a, b) {
		return exe, nil
	}
	return filepath.Abs(called)
}

// newServer is what the supervisor runs in the node.
func newServer(flags *configFlags) *cobra.Command {
	return &cobra.Command{
		Use:    "server",
		Short:  "Serve CRI inside the node (started by the daemon)",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := flags.load()
			if errors.Is(err, config.ErrInvalid) {
				fmt.Fprintln(os.Stderr, "subpod:", err)
				return exitStatus(rootless.ExitConfig)
			}
			if err != nil {
				return err
			}
			level, err := logLevel(cfg)
			if err != nil {
				return err
			}
			log := newLog(cfg, level)
			slog.SetDefault(log)
			klog.SetSlogLogger(log) // of the streaming library
			node, err := rootless.Load(cfg.Daemon.RunDir)
			if err != nil {
				return err
			}
			if !node.Inside {
				return fmt.Errorf("the server runs inside the node only: use \"subpod daemon\"")
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), unix.SIGTERM, unix.SIGINT)
			defer stop()
			return runServer(ctx, cfg, node)
		},
	}
}

func newLog(cfg *config.Config, level slog.Level) *slog.Logger {
	opts := &slog.HandlerOptions{Level: level}
	if cfg.Daemon.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(os.Stderr, opts))
	}
	return slog.New(slog.NewTextHandler(os.Stderr, opts))
}
