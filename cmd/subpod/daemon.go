package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/cmd/internal/cli"
	"github.com/subpod/subpod/pkg/cgroup"
	"github.com/subpod/subpod/pkg/config"
	"github.com/subpod/subpod/rootless"
)

func newDaemon(flags *cli.Flags) *cobra.Command {
	return &cobra.Command{
		Use:   "daemon",
		Short: "Make the node and serve CRI in it",
		Long: `Makes the node (user, mount, PID and network namespaces) and runs the CRI
server in it, again and again if it must. SIGTERM stops both and everything in
the node; SIGHUP, or "subpod reload", restarts the server only.`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			cfg, err := flags.Load()
			if err != nil {
				return err
			}
			node, err := nodeConfig(cfg, flags)
			if err != nil {
				return err
			}
			ownScope(cfg)
			return rootless.Exec(node)
		},
	}
}

// ownScope gets a daemon that was started from a shell a cgroup of its own from
// systemd: limits can be set only below that. A service has one already, or its
// administrator did not want it to.
func ownScope(cfg *config.Config) {
	manager := cfg.Runtime.CgroupManager
	service := os.Getenv("SYSTEMD_EXEC_PID") == strconv.Itoa(os.Getpid())
	if service || os.Geteuid() == 0 || manager != "auto" && manager != cgroup.DriverCgroupfs || rootless.OwnsCgroup() {
		return
	}
	if err := cgroup.EnterScope(context.Background()); err != nil && !errors.Is(err, cgroup.ErrNoManager) {
		slog.Warn("no cgroup of its own for the daemon: containers run without resource limits", "error", err)
	}
}

// nodeConfig turns the configuration into that of the node.
func nodeConfig(cfg *config.Config, flags *cli.Flags) (rootless.Config, error) {
	level, err := cli.LogLevel(cfg)
	if err != nil {
		return rootless.Config{}, err
	}
	server, err := serverPath()
	if err != nil {
		return rootless.Config{}, err
	}
	args, err := flags.Args()
	if err != nil {
		return rootless.Config{}, err
	}
	c := rootless.Config{
		RunDir:              cfg.Daemon.RunDir,
		DataDir:             cfg.Daemon.DataDir,
		Uplink:              cfg.Node.Uplink,
		UplinkFallback:      cfg.Node.UplinkFallback,
		IDMapping:           cfg.Node.IDMapping,
		MTU:                 cfg.Node.MTU,
		SlirpBinary:         cfg.Node.Slirp4netnsPath,
		PastaBinary:         cfg.Node.PastaPath,
		DisableHostLoopback: cfg.Node.DisableHostLoopback,
		Binds:               rootless.DefaultBinds(cfg.Daemon.DataDir),
		HostCgroupNS:        cfg.Runtime.CgroupManager == "systemd",
		Server:              append([]string{server}, args...),
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

// serverBinary is the server's program, found beside this one.
const serverBinary = "subpod-server"

// serverPath is where the server's program lies: beside the path by which this
// one was called, so that an upgrade that moves a link is seen by the next start
// of the server.
func serverPath() (string, error) {
	exe, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find this program: %w", err)
	}
	if called, err := exec.LookPath(os.Args[0]); err == nil {
		if beside, err := filepath.Abs(filepath.Join(filepath.Dir(called), serverBinary)); err == nil && isExecutable(beside) {
			return beside, nil
		}
	}
	if beside := filepath.Join(filepath.Dir(exe), serverBinary); isExecutable(beside) {
		return beside, nil
	}
	path, err := exec.LookPath(serverBinary)
	if err != nil {
		return "", fmt.Errorf("find %s, which is installed beside %s: %w", serverBinary, exe, err)
	}
	return filepath.Abs(path)
}

func isExecutable(path string) bool { return unix.Access(path, unix.X_OK) == nil }
