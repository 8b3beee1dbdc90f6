package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

// The OCI runtimes' own systemd drivers cannot be used: they tell the manager
// PIDs, and those of the node's PID namespace are other processes' on the host.
// So scopes are made here, by pidfd, and the runtimes work with plain cgroups
// inside of them.

// Children of a container's scope: a cgroup that passes controllers on may hold no
// process itself.
const (
	scopeContainer = "container"
	scopeMonitor   = "conmon"
)

// scopeTimeout is how long the manager may take to move a process into its scope.
const scopeTimeout = 10 * time.Second

// pidfdVersion is the first systemd that takes scopes' processes by pidfd (NEWS
// of systemd 253).
const pidfdVersion = 253

// Place gives the container id its scope, when the driver is systemd: the manager
// makes it with process pid in it, the container's monitor, which is then moved
// aside so that the runtime can make the container's cgroup beside it. pid is as
// this process sees it. With other drivers it does nothing.
func (p Pod) Place(ctx context.Context, id string, pid int) error {
	if p.delegation.Driver != DriverSystemd {
		return nil
	}
	scope := scopeName(id)
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return fmt.Errorf("pidfd of process %d: %w", pid, err)
	}
	defer unix.Close(fd)
	process := property{"PIDFDs", dbus.MakeVariant([]dbus.UnixFD{dbus.UnixFD(fd)})}
	if err := startScope(ctx, scope, p.Parent, pid, process); err != nil {
		return fmt.Errorf("make the scope %s in %s: %w", scope, p.Parent, err)
	}
	dir := filepath.Join(p.Dir, scope)
	for _, child := range []string{scopeMonitor, scopeContainer} {
		if err := os.Mkdir(filepath.Join(dir, child), 0o755); err != nil {
			return fmt.Errorf("divide the scope %s: %w", scope, err)
		}
	}
	if err := writeFile(filepath.Join(dir, scopeMonitor), "cgroup.procs", strconv.Itoa(pid)); err != nil {
		return fmt.Errorf("divide the scope %s: %w", scope, err)
	}
	return passOn(dir, words(dir, "cgroup.controllers"))
}

func scopeName(id string) string { return scopePrefix + "-" + id + ".scope" }

// ErrNoManager says that there is no systemd user manager to ask for a cgroup v2
// scope.
var ErrNoManager = errors.New("no systemd user manager")

// EnterScope moves this process, which must be in the host's PID namespace, into a
// scope of its own that systemd's user manager delegates to it: what Delegate=yes
// is for a service. For a daemon that was started from a shell. An error leaves it
// where it was; ErrNoManager.
func EnterScope(ctx context.Context) error {
	var st unix.Statfs_t
	if err := unix.Statfs(Mount, &st); err != nil || st.Type != unix.CGROUP2_SUPER_MAGIC || userBus() == "" {
		return ErrNoManager
	}
	pid := os.Getpid()
	scope := fmt.Sprintf("%s-daemon-%d.scope", scopePrefix, pid)
	// By PID, which older managers know as well.
	process := property{"PIDs", dbus.MakeVariant([]uint32{uint32(pid)})}
	if err := startScope(ctx, scope, "app.slice", pid, process); err != nil {
		return fmt.Errorf("make the scope %s: %w", scope, err)
	}
	return nil
}

// startScope returns once the process, which the last argument tells the manager,
// is in the new scope.
func startScope(ctx context.Context, scope, slice string, pid int, process property) error {
	ctx, cancel := context.WithTimeout(ctx, scopeTimeout)
	defer cancel()
	properties := []property{
		{"Description", dbus.MakeVariant("subpod: " + scope)},
		{"Slice", dbus.MakeVariant(slice)},
		{"Delegate", dbus.MakeVariant(true)},
		// A scope whose last process was killed is not kept as failed.
		{"CollectMode", dbus.MakeVariant("inactive-or-failed")},
		process,
	}
	type auxiliary struct {
		Name       string
		Properties []property
	}
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		// The scope of an earlier attempt goes when its last process has ended.
		err := callManager(ctx, "StartTransientUnit", scope, "fail", properties, []auxiliary{})
		if err == nil {
			break
		}
		if !isDBusError(err, "org.freedesktop.systemd1.UnitExists") || pause(ctx, wait) != nil {
			return err
		}
	}
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		own, _, err := ownCgroup(fmt.Sprintf("/proc/%d/cgroup", pid))
		if err != nil {
			return err
		}
		if filepath.Base(own) == scope {
			return nil
		}
		if err := pause(ctx, wait); err != nil {
			return fmt.Errorf("process %d is in cgroup %s and was not moved: %w", pid, own, err)
		}
	}
}

// pause waits for d, or until ctx ends.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

func isDBusError(err error, name string) bool {
	var failed dbus.Error
	return errors.As(err, &failed) && failed.Name == name
}

type property struct {
	Name  string
	Value dbus.Variant
}

// stopSlice ends a pod's slice; systemd removes its cgroup. Idempotent.
func stopSlice(ctx context.Context, slice string) error {
	err := callManager(ctx, "StopUnit", slice, "fail")
	if err != nil && !isDBusError(err, "org.freedesktop.systemd1.NoSuchUnit") {
		return fmt.Errorf("stop %s: %w", slice, err)
	}
	return nil
}

// askManager reports why scopes cannot be made.
func askManager() error {
	ctx, cancel := context.WithTimeout(context.Background(), scopeTimeout)
	defer cancel()
	conn, err := dialManager(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	v, err := manager(conn).GetProperty("org.freedesktop.systemd1.Manager.Version")
	if err != nil {
		return fmt.Errorf("ask systemd for its version: %w", err)
	}
	text, _ := v.Value().(string)
	number, _, _ := strings.Cut(strings.TrimPrefix(text, "v"), ".")
	number, _, _ = strings.Cut(number, " ")
	if n, err := strconv.Atoi(number); err == nil && n < pidfdVersion {
		return fmt.Errorf("systemd is version %s, and takes processes of a PID namespace from %d on", text, pidfdVersion)
	}
	return nil
}

// callManager calls systemd's user manager over a connection of this call alone:
// the bus may be restarted at any time.
func callManager(ctx context.Context, method string, args ...any) error {
	conn, err := dialManager(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	return manager(conn).CallWithContext(ctx, "org.freedesktop.systemd1.Manager."+method, 0, args...).Err
}

func manager(conn *dbus.Conn) dbus.BusObject {
	return conn.Object("org.freedesktop.systemd1", "/org/freedesktop/systemd1")
}

func dialManager(ctx context.Context) (*dbus.Conn, error) {
	path := userBus()
	if path == "" {
		return nil, errors.New("there is no user bus: $XDG_RUNTIME_DIR/bus is missing (install dbus-user-session, log in again)")
	}
	uid, err := hostUID()
	if err != nil {
		return nil, err
	}
	conn, err := dbus.Dial("unix:path="+path, dbus.WithContext(ctx))
	if err != nil {
		return nil, fmt.Errorf("connect to the user bus %s: %w", path, err)
	}
	// The bus compares the name with the credentials that the kernel shows it, and
	// those are the host's.
	if err := conn.Auth([]dbus.Auth{dbus.AuthExternal(strconv.Itoa(uid))}); err != nil {
		return nil, errors.Join(fmt.Errorf("authenticate to the user bus as uid %d: %w", uid, err), conn.Close())
	}
	if err := conn.Hello(); err != nil {
		return nil, errors.Join(fmt.Errorf("greet the user bus: %w", err), conn.Close())
	}
	return conn, nil
}

// hostUID is this process's uid outside of its user namespace.
func hostUID() (int, error) {
	b, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return 0, fmt.Errorf("own ID map: %w", err)
	}
	uid := os.Geteuid()
	for line := range strings.Lines(string(b)) {
		var inside, outside, size int
		if _, err := fmt.Sscan(line, &inside, &outside, &size); err == nil && uid >= inside && uid < inside+size {
			return outside + uid - inside, nil
		}
	}
	return 0, fmt.Errorf("uid %d is not in the ID map", uid)
}
