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
	"github.com/subpod/subpod/cmd/internal/doctor"
	"github.com/subpod/subpod/pkg/cgroup"
	"github.com/subpod/subpod/pkg/config"
	"github.com/subpod/subpod/rootless"
)

func newDaemon(flags *cli.Flags) *cobra.Command {
	return &cobra.Command{
		Use:   "daemon",
		Short: "Create the node and run the CRI server in it",
		Long: `Creates the node (user, mount, PID and network namespaces) and runs the CRI
server in it; a server that crashes is restarted. SIGTERM stops the server and
everything in the node. SIGHUP, or "subpod reload", restarts only the server.`,
		Args: none(),
		RunE: func(*cobra.Command, []string) error {
			cfg, err := flags.Load()
			if err != nil {
				return err
			}
			if err := checkState(cfg); err != nil {
				return err
			}
			node, err := nodeConfig(cfg, flags)
			if err != nil {
				return err
			}
			ownScope(cfg)
			unix.Umask(daemonMask)
			return rootless.Exec(node)
		},
	}
}

// daemonMask is the umask of the daemon and all that it starts: containers read, as their
// users, what it makes for them, as /etc/hosts. What is nobody else's is made so.
const daemonMask = 0o022

// ownScope moves a daemon that was started from a shell into a systemd scope, and
// so into a cgroup of its own: limits can only be set below that. A service has a
// cgroup of its own already, unless its administrator decided otherwise.
func ownScope(cfg *config.Config) {
	manager := cfg.Runtime.CgroupManager
	service := os.Getenv("SYSTEMD_EXEC_PID") == strconv.Itoa(os.Getpid())
	if service || os.Geteuid() == 0 || manager != "auto" && manager != cgroup.DriverCgroupfs || rootless.OwnsCgroup() {
		return
	}
	if err := cgroup.EnterScope(context.Background()); err != nil && !errors.Is(err, cgroup.ErrNoManager) {
		slog.Warn("the daemon has no cgroup of its own; containers run without resource limits", "error", err)
	}
}

// nodeConfig returns the part of the configuration that describes the node.
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
		UplinkFault:         doctor.Host{Host: rootless.ThisHost(), Config: cfg}.UplinkFault,
		IPv6:                cfg.Node.UplinkIPv6,
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
	if c.Served, err = cfg.Encode(); err != nil {
		return rootless.Config{}, err
	}
	c.View, c.HostPaths = cfg.Node.View, cfg.Node.HostPaths
	c.Shown, c.Writable, c.Programs = shown(cfg, flags), writable(), programs(cfg)
	if len(cfg.Node.CopyUp) > 0 {
		c.CopyUp = cfg.Node.CopyUp
	}
	for _, b := range cfg.Node.Binds {
		c.Binds = append(c.Binds, rootless.Bind(b))
	}
	return c, nil
}

// serverBinary is the name of the server program, installed beside this one.
const serverBinary = "subpod-server"

// serverPath returns the path of the server program: beside the path by which this
// program was called, so that the next start of the server follows an upgrade that
// replaces a symbolic link.
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
		return "", fmt.Errorf("find %s: %w; install it beside %s", serverBinary, err, exe)
	}
	return filepath.Abs(path)
}

func isExecutable(path string) bool { return unix.Access(path, unix.X_OK) == nil }
