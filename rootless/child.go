package rootless

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"

	"github.com/rootless-containers/rootlesskit/v3/pkg/child"
	"github.com/rootless-containers/rootlesskit/v3/pkg/port"
	"github.com/rootless-containers/rootlesskit/v3/pkg/port/builtin"
	"golang.org/x/sys/unix"
)

// selfExe is this very binary, also when its file has been replaced.
const selfExe = "/proc/self/exe"

// runChild is rootlesskit's child: PID 1 of the node. It ends when the
// supervisor does, and the kernel then ends all processes of the node.
func runChild(more []UplinkDriver) error {
	c, err := loadConfig(os.Getenv(envState))
	if err != nil {
		return fmt.Errorf("read the node's configuration: %w", err)
	}
	c.Log, c.drivers = newLogger(c, "child"), more
	redirectLogrus(c.Log)
	if err := restorePath(c); err != nil {
		return err
	}
	// For the supervisor, which inherits the environment.
	if err := os.Setenv(envRole, roleSupervisor); err != nil {
		return err
	}
	opt := child.Opt{
		PipeFDEnvKey:              envPipe,
		RunActivationHelperEnvKey: envActivationHelper,
		ChildUseActivationEnvKey:  envActivation,
		StateDirEnvKey:            envState,
		TargetCmd:                 []string{selfExe, roleSupervisor},
		CopyUpDirs:                c.CopyUp,
		MountProcfs:               true,
		Propagation:               "rslave",
	}
	if c.ownNetwork() {
		opt.DetachNetNS = true
		opt.NetworkDriver = newUplinkChild(c)
		opt.PortDriver = portChild{builtin.NewChildDriver(debugWriter{c.Log, "port driver"}), c.Log}
	}
	view := nodeView{c, &watcher{}}
	opt.CopyUpDriver = view
	reapOrphans(view.watcher.reaped)
	err = child.Child(opt)
	// Rootlesskit distinguishes the supervisor from its own programs in the text only.
	supervisor := fmt.Sprintf("command %v exited", opt.TargetCmd)
	if code := exitCode(err); err != nil && code != 1 && strings.HasPrefix(err.Error(), supervisor) {
		return &exitError{"the supervisor", code} // it has logged why
	}
	return err
}

// nodeView prepares the node's file system at the one moment when rootlesskit
// lets its user do so: after the ID maps and the fresh /proc, before the
// network, the port driver and the supervisor.
type nodeView struct {
	c       Config
	watcher *watcher
}

// CopyUp implements rootlesskit's copyup.ChildDriver.
func (v nodeView) CopyUp([]string) ([]string, error) {
	// The supervisor gets the service manager's socket, and no other program.
	if os.Getenv(envListenFDs) != "" {
		unix.CloseOnExec(listenFD)
	}
	if err := checkProc(); err != nil {
		return nil, err
	}
	cg := detectCgroup() // before the mounts hide it
	mount := func() error { return mountNode(v.c, v.c.CopyUp, !v.c.HostCgroupNS) }
	if v.c.View == ViewMinimal {
		mount = func() error { return mountMinimal(v.c, !v.c.HostCgroupNS) }
	}
	if err := mount(); err != nil {
		return nil, err
	}
	if v.c.View == ViewMinimal || slices.Contains(v.c.CopyUp, "/etc") {
		if err := makeHosts("/etc/hosts"); err != nil {
			return nil, err
		}
	}
	// The copied directories are ours to handle: rootlesskit only wants to know
	// about /etc when it writes resolv.conf there, which a detached network
	// namespace rules out.
	if err := writeFacts(v.c, cg, false); err != nil {
		return nil, err
	}
	v.watcher.start(v.c)
	return nil, nil
}

// makeHosts makes the node's hosts(5), empty, where the host has none, as a Debian that was
// just made by debootstrap: rootlesskit starts no node without one.
func makeHosts(file string) error {
	if _, err := os.Stat(file); !errors.Is(err, os.ErrNotExist) {
		return nil
	}
	// It may be a link that leads nowhere.
	if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("make the node's %s: %w", file, err)
	}
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		return fmt.Errorf("make the node's %s: %w", file, err)
	}
	return nil
}

// portChild runs the builtin port driver's end in the node. Rootlesskit looks
// at its result only when the node ends, and would then wait for ever for a
// driver that has already failed.
type portChild struct {
	port.ChildDriver
	log *slog.Logger
}

// RunChildDriver implements rootlesskit's port.ChildDriver.
func (p portChild) RunChildDriver(opaque map[string]string, quit <-chan struct{}, netns string) error {
	failed := make(chan error, 1)
	inner := make(chan struct{}, 1)
	go func() { failed <- p.ChildDriver.RunChildDriver(opaque, inner, netns) }()
	select {
	case <-quit:
		inner <- struct{}{}
		return <-failed
	case err := <-failed:
		p.log.Error("the port driver has failed: no host ports until the daemon is restarted", "error", err)
		<-quit
		return err
	}
}
