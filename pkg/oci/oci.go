// Package oci runs containers: conmon holds each container's streams, log and
// exit code, and an OCI runtime (crun by default, runc as a second handler)
// makes and joins its namespaces.
//
// An Executor keeps nothing in memory about a container. Begin and Create return
// a Container, the caller stores it, and every other call works from that, so a
// restarted server goes on where the old one stopped. docs/containers.md describes the
// processes, the files of a bundle and what each shortcut relies on.
package oci

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sync"
	"sync/atomic"
)

// Options configures an Executor.
type Options struct {
	// Conmon is the path of conmon, or a name looked up in PATH ("" = "conmon").
	Conmon string
	// Handlers are the OCI runtimes by runtime-handler name.
	Handlers map[string]Handler
	// RunDir is the server's runtime directory. The Executor makes exits/,
	// exec/ and oci/<handler>/ below it.
	RunDir string
	// Monitor is the kind that containers get which are created from now on: MonitorConmon
	// ("") or MonitorNode. Where the latter cannot be used it is the former.
	Monitor string
	// MonitorSocket is the path of the socket of the node's monitor, and MonitorProgram of
	// the program: another one than that which runs takes over.
	MonitorSocket, MonitorProgram string
	// CgroupManager is "cgroupfs", "systemd" or "disabled".
	CgroupManager string
	// Switch puts a filter on the calling thread by which the sockets of a pod are switched to
	// the host's network (BeginSpec.Switched); nil where that cannot be.
	Switch func(pod string) error
	// KeptMounts are directories of KeepMounts: runtimes are started in a mount namespace that
	// has of what is mounted there only the container's own.
	KeptMounts []string
	// Log is where warnings go; nil means slog.Default().
	Log *slog.Logger
}

// Executor creates and drives containers. All methods may be called at the
// same time, also for the same container.
type Executor struct {
	conmon   string
	runDir   string
	exitDir  string
	execDir  string
	sockDir  string
	handlers map[string]*runtime
	noCgroup bool
	// monitorSocket is that of the node's monitor, which new containers get with ownMonitor.
	monitorSocket string
	ownMonitor    bool
	switchThread  func(pod string) error
	keyringShared atomic.Bool      // see sharedKeyring
	mounts        *mountNamespaces // nil: runtimes are started in the server's own
	mountsFailed  atomic.Bool
	log           *slog.Logger
}

// New checks conmon and every handler, finds out which shortcuts each handler
// allows and, where the mount namespace is ours to change, binds crun read-only
// over itself (crun then skips copying itself on every call). It may be called
// again in the same namespace: what is already there is kept. A missing binary
// is an error; the caller leaves out what it can do without.
func New(ctx context.Context, o Options) (*Executor, error) {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Conmon == "" {
		o.Conmon = "conmon"
	}
	if !filepath.IsAbs(o.RunDir) {
		return nil, fmt.Errorf("runtime directory %q is not an absolute path", o.RunDir)
	}
	conmon, err := lookPath(o.Conmon)
	if err != nil {
		return nil, fmt.Errorf("find conmon: %w (install it or set its path)", err)
	}
	e := &Executor{
		conmon:        conmon,
		runDir:        o.RunDir,
		exitDir:       filepath.Join(o.RunDir, "exits"),
		execDir:       filepath.Join(o.RunDir, "exec"),
		sockDir:       consoleDir(o.RunDir),
		handlers:      map[string]*runtime{},
		noCgroup:      o.CgroupManager == "disabled",
		log:           o.Log,
		monitorSocket: o.MonitorSocket,
		switchThread:  o.Switch,
	}
	for _, dir := range []string{e.exitDir, e.execDir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
	}
	if len(o.Handlers) == 0 {
		return nil, errors.New("no runtime handler is configured")
	}
	for name, h := range o.Handlers {
		rt, err := newRuntime(ctx, name, h, o)
		if err != nil {
			return nil, err
		}
		e.handlers[name] = rt
	}
	if e.mounts, err = newMountNamespaces(o.KeptMounts); err != nil {
		e.log.Warn("containers are created in the node's mount namespace, which takes longer the more pods there are", "error", err)
	}
	if o.Monitor == MonitorNode {
		nodeMonitor{e}.choose(ctx, o.MonitorProgram)
	}
	return e, nil
}

// Handlers returns what is known about each runtime handler.
func (e *Executor) Handlers() map[string]Features {
	m := make(map[string]Features, len(e.handlers))
	for name, rt := range e.handlers {
		m[name] = rt.features()
	}
	return m
}

func (e *Executor) handler(name string) (*runtime, error) {
	rt := e.handlers[name]
	if rt == nil {
		return nil, fmt.Errorf("%w: %q", ErrNoHandler, name)
	}
	return rt, nil
}

func (e *Executor) exitFile(id string) string { return filepath.Join(e.exitDir, id) }

// ids become file names and command arguments.
var validID = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$`)
})

func checkID(id string) error {
	if !validID().MatchString(id) {
		return fmt.Errorf("%q is not a container ID", id)
	}
	return nil
}

func lookPath(name string) (string, error) {
	p, err := exec.LookPath(name)
	if err != nil {
		return "", err
	}
	return filepath.Abs(p)
}

// consoleDir is where conmon makes its console sockets. It cuts longer names
// off at the 108 bytes of sun_path (unix(7)).
func consoleDir(runDir string) string {
	if len(runDir)+len("/conmon-term.XXXXXX") < 108 {
		return runDir
	}
	return os.TempDir()
}
