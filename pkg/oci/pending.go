package oci

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// BeginSpec describes a container before its OCI specification is known.
type BeginSpec struct {
	ID      string // also the name of the runtime's state directory
	Handler string
	// Bundle is a directory for this container alone, made if it is missing. It
	// holds conmon's files and ours, not the root file system.
	Bundle string
	// LogPath is the absolute path of the log in CRI format; "" = no log. Its
	// directory must exist.
	LogPath                    string
	Terminal, Stdin, StdinOnce bool
	// Confined starts conmon, the runtime and so the container where nothing can be
	// opened by a file handle.
	Confined bool
	// Switched is the pod, as Options.Switch knows it, whose sockets are switched to the host's
	// network; "" for none.
	Switched string
	// ConmonCgroup is a cgroup v2 directory to start conmon, or the runtime where there is
	// none, in; "" = ours.
	ConmonCgroup string
}

// Pending is a container whose creation has begun: a process blocked on its start
// pipe, conmon or a shell, before it invokes the runtime. Exactly one Create follows, or
// Abandon. Its methods must not be called at the same time.
type Pending struct {
	e      *Executor
	rt     *runtime
	spec   BeginSpec
	launch launch
	log    *os.File // nil without a log
	// apart: the runtime is started in a mount namespace of its own, mounts, or nil for the
	// server's.
	apart  bool
	mounts *os.File
	spent  bool
}

// Begin starts that process up to the point where it invokes the runtime. That takes
// as long as mounting a root file system, so callers do both at once. The
// caller must call Create or Abandon, also after ctx is done; a deferred Abandon
// serves. ErrNoHandler, and *RuntimeError when the runtime has a container with
// this ID already.
func (e *Executor) Begin(ctx context.Context, s BeginSpec) (*Pending, error) {
	if err := s.check(); err != nil {
		return nil, fmt.Errorf("create container %s: %w", s.ID, err)
	}
	rt, err := e.handler(s.Handler)
	if err != nil {
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	// Its files would be taken for those of the container that is created now.
	if _, err := os.Lstat(rt.stateDir(s.ID)); err == nil {
		return nil, &RuntimeError{Op: "create", Handler: rt.name, ExitCode: -1, Message: "container " + s.ID + " already exists"}
	}
	if err := os.MkdirAll(s.Bundle, 0o700); err != nil {
		return nil, fmt.Errorf("create container %s: make the bundle: %w", s.ID, err)
	}
	if err := removeFile(e.exitFile(s.ID)); err != nil {
		return nil, fmt.Errorf("create container %s: remove an old exit file: %w", s.ID, err)
	}
	p := &Pending{e: e, rt: rt, spec: s, apart: e.mounts.worthwhile()}
	if s.LogPath != "" {
		p.log, err = openLog(s.LogPath)
	}
	if err == nil {
		p.launch, err = e.nextMonitor().launch(p)
	}
	if err != nil {
		p.Abandon()
		return nil, fmt.Errorf("create container %s: %w", s.ID, err)
	}
	return p, nil
}

func (s *BeginSpec) check() error {
	if err := checkID(s.ID); err != nil {
		return err
	}
	switch {
	case !filepath.IsAbs(s.Bundle):
		return fmt.Errorf("bundle %q is not an absolute path", s.Bundle)
	case s.LogPath != "" && !filepath.IsAbs(s.LogPath):
		return fmt.Errorf("log path %q is not absolute", s.LogPath)
	case s.LogPath != "" && strings.Contains(s.Bundle, ":"):
		return fmt.Errorf("bundle %q has a colon, which conmon takes for a separator", s.Bundle)
	}
	return nil
}

// start starts the waiting process, in its cgroup.
func (p *Pending) start(cmd *exec.Cmd) error {
	if p.spec.ConmonCgroup != "" {
		dir, err := os.Open(p.spec.ConmonCgroup)
		if err != nil {
			return fmt.Errorf("open the cgroup for it: %w", err)
		}
		defer dir.Close()
		if cmd.SysProcAttr == nil {
			cmd.SysProcAttr = &syscall.SysProcAttr{}
		}
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(dir.Fd())
	}
	f, err := filtersOf(p.e, p.spec.Confined, p.spec.Switched)
	if err != nil {
		return err
	}
	keyring, err := startCommand(cmd, f)
	sharedKeyring(p.e, keyring)
	return err
}

// PID returns the PID of the waiting process. A cgroup that the caller moves it
// to before Create holds what that starts as well.
func (p *Pending) PID() int { return p.launch.pid() }

// Create writes the bundle's config.json, has the runtime called and
// returns the container, whose init process then waits for Start. seccompBPF is
// spec.Linux.Seccomp compiled, in base64; a runtime that accepts it need not
// compile the profile, which must be there as well.
//
// On error nothing is left behind but the log. Failures of the runtime are
// *RuntimeError; ErrCommandNotFound where the runtime looks the command up this
// early. ErrRetry: an option that the runtime or the kernel refused is off from
// now on for this handler; the caller begins again, which happens at most twice
// for a container.
func (p *Pending) Create(ctx context.Context, spec *specs.Spec, seccompBPF string) (Container, error) {
	if p.spent {
		return Container{}, fmt.Errorf("create container %s: its creation has ended already", p.spec.ID)
	}
	if spec == nil || spec.Root == nil || spec.Process == nil || spec.Linux == nil {
		p.Abandon()
		return Container{}, fmt.Errorf("create container %s: the OCI spec needs root, process and linux", p.spec.ID)
	}
	c := newContainer(p.spec, spec)
	bounded, cancel := p.rt.bound(ctx)
	defer cancel()
	err := p.create(bounded, spec, seccompBPF, &c)
	p.close()
	if err == nil {
		return c, nil
	}
	return Container{}, errors.Join(p.retry(err), p.undo(ctx, c))
}

// create fills in c as each fact becomes known, also when it returns an error.
func (p *Pending) create(ctx context.Context, spec *specs.Spec, filter string, c *Container) error {
	if !p.rt.bpf.Load() || !canUseBPF(spec) {
		filter = ""
	}
	if err := writeConfig(p.spec.Bundle, withFilter(*spec, filter), p.spec.Terminal); err != nil {
		return err
	}
	if err := p.enterMounts(spec); err != nil {
		return err
	}
	if err := p.launch.invoke(ctx, c); err != nil {
		return err
	}
	if filter != "" {
		if err := checkFilter(p.rt.stateDir(p.spec.ID), filter); err != nil {
			return err
		}
	}
	var err error
	if c.MountNS, err = mountNSOf(c.Init.PID); err != nil {
		return fmt.Errorf("identify the container's mount namespace: %w", err)
	}
	if c.Before, err = imageOf(c.Init.PID); err != nil {
		return fmt.Errorf("identify the program of the container's init: %w", err)
	}
	return nil
}

// retry switches off the option that a creation failed for, and adds ErrRetry
// to the error then.
func (p *Pending) retry(err error) error {
	if !errors.Is(err, errBPFIgnored) {
		return err
	}
	if p.rt.bpf.CompareAndSwap(true, false) {
		p.e.log.Warn("runtime ignores compiled seccomp filters, it compiles the profiles itself from now on", "handler", p.rt.name)
	}
	return fmt.Errorf("%w: %w", ErrRetry, err)
}

// undo removes what a failed creation made, also when the caller's context is
// done.
func (p *Pending) undo(ctx context.Context, c Container) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	return p.e.remove(ctx, p.rt, p.spec.ID, c)
}

// undoTimeout bounds the removal of what a failed creation made.
const undoTimeout = 10 * time.Second

// Abandon ends the waiting process and removes what Begin made, but the log. It
// does nothing after Create or a first Abandon.
func (p *Pending) Abandon() {
	if p.spent {
		return
	}
	p.close()
	c := Container{Handler: p.spec.Handler, Bundle: p.spec.Bundle}
	if err := p.undo(context.Background(), c); err != nil {
		p.e.log.Warn("cannot remove what an abandoned creation left", "error", err)
	}
}

func (p *Pending) close() {
	p.spent = true
	if p.launch != nil {
		p.launch.close()
	}
	for _, f := range []*os.File{p.log, p.mounts} {
		if f != nil {
			f.Close()
		}
	}
}
