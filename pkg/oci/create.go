package oci

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sync/errgroup"

	"github.com/subpod/subpod/pkg/proc"
)

// CreateSpec is what Create needs to know.
type CreateSpec struct {
	ID      string // also the name of the runtime's state directory
	Handler string
	// Bundle is a directory of this container alone, made if it is missing.
	// conmon's and our files lie in it, not the root file system.
	Bundle string
	Spec   *specs.Spec
	// Complete, when set, is called while conmon starts, which takes as long as
	// mounting a root file system, and fills in Spec and SeccompBPF.
	Complete func(context.Context, *CreateSpec) error
	// Place, when set, is called with the PID of conmon before that calls the
	// runtime: to give it a cgroup.
	Place func(ctx context.Context, conmon int) error
	// LogPath is the absolute path of the log in CRI format; "" = no log. Its
	// directory must exist.
	LogPath                    string
	Terminal, Stdin, StdinOnce bool
	// SeccompBPF is Spec.Linux.Seccomp compiled, in base64. Where the runtime
	// takes it, it saves the compilation; otherwise the profile itself is used,
	// so the profile must be there as well.
	SeccompBPF string
	// ConmonCgroup is a cgroup v2 directory to start conmon in; "" = ours.
	ConmonCgroup string
}

// Facts is what is known about a created container: stored as JSON in its
// record, and all that the other methods need. Its fields keep their names.
type Facts struct {
	Handler   string  `json:"handler"`
	Bundle    string  `json:"bundle"`
	Rootfs    string  `json:"rootfs"`
	LogPath   string  `json:"logPath,omitempty"`
	Init      proc.ID `json:"init"`
	Conmon    proc.ID `json:"conmon"`
	Terminal  bool    `json:"terminal,omitempty"`
	Stdin     bool    `json:"stdin,omitempty"`
	StdinOnce bool    `json:"stdinOnce,omitempty"`
	// PIDNamespace is "own", "shared" (joined by path) or "host" (the node's).
	PIDNamespace string `json:"pidNamespace"`
	// MountNS tells which processes belong to the container.
	MountNS mountNS `json:"mountNS"`
	// Before is the program image of init before it executes the container's
	// command.
	Before image `json:"before"`
	// PlainStart: the runtime has more to do at start than to let init go on.
	PlainStart bool `json:"plainStart,omitempty"`
	// PlainDelete: the runtime has more to do at delete than to forget.
	PlainDelete bool `json:"plainDelete,omitempty"`
}

// errBPFIgnored says that a runtime did not take the compiled seccomp filter.
var errBPFIgnored = errors.New("runtime did not take the compiled seccomp filter")

const bpfAnnotation = "run.oci.seccomp_bpf_data"

// Create makes the container: its init process exists and waits for Start. On
// error nothing is left behind but the log. Runtime failures are *RuntimeError,
// ErrCommandNotFound where the runtime looks the command up this early.
func (e *Executor) Create(ctx context.Context, s CreateSpec) (Facts, error) {
	if err := checkCreate(s); err != nil {
		return Facts{}, fmt.Errorf("create container %s: %w", s.ID, err)
	}
	rt, err := e.handler(s.Handler)
	if err != nil {
		return Facts{}, err
	}
	f, err := e.create(ctx, rt, &s)
	if errors.Is(err, errBPFIgnored) {
		e.log.Warn("runtime ignores compiled seccomp filters, profiles are compiled by it from now on", "handler", rt.name)
		rt.bpf.Store(false)
		f, err = e.create(ctx, rt, &s)
	}
	if errors.Is(err, errKeyQuota) {
		if rt.keyring.CompareAndSwap(true, false) {
			e.log.Warn("the user has no more session keyrings, containers share the daemon's from now on; sysctl kernel.keys.maxkeys and kernel.keys.maxbytes raise the limit", "handler", rt.name)
		}
		f, err = e.create(ctx, rt, &s)
	}
	return f, err
}

func checkCreate(s CreateSpec) error {
	if err := checkID(s.ID); err != nil {
		return err
	}
	switch {
	case !filepath.IsAbs(s.Bundle):
		return fmt.Errorf("bundle %q is not an absolute path", s.Bundle)
	case s.LogPath != "" && !filepath.IsAbs(s.LogPath):
		return fmt.Errorf("log path %q is not absolute", s.LogPath)
	case strings.Contains(s.LogPath, ":"):
		return fmt.Errorf("log path %q has a colon, which conmon takes for a separator", s.LogPath)
	}
	return nil
}

// complete returns once the specification is there and can be used.
func (s *CreateSpec) complete(ctx context.Context) error {
	if s.Complete != nil {
		if err := s.Complete(ctx, s); err != nil {
			return err
		}
		s.Complete = nil
	}
	if s.Spec == nil || s.Spec.Root == nil || s.Spec.Process == nil || s.Spec.Linux == nil {
		return errors.New("spec needs root, process and linux")
	}
	return nil
}

func (e *Executor) create(ctx context.Context, rt *runtime, s *CreateSpec) (f Facts, err error) {
	if err := os.MkdirAll(s.Bundle, 0o700); err != nil {
		return Facts{}, fmt.Errorf("make bundle: %w", err)
	}
	if err := os.Remove(e.exitFile(s.ID)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return Facts{}, fmt.Errorf("remove old exit file: %w", err)
	}
	f = Facts{
		Handler: s.Handler, Bundle: s.Bundle, LogPath: s.LogPath,
		Terminal: s.Terminal, Stdin: s.Stdin, StdinOnce: s.StdinOnce,
	}
	// A file of an earlier container here may be the reason of what is tried now.
	if _, err := os.Lstat(rt.stateDir(s.ID)); err == nil {
		return Facts{}, &RuntimeError{Op: "create", Handler: rt.name, ExitCode: -1, Message: "container " + s.ID + " already exists"}
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, e.undoCreate(ctx, rt, s.ID, f))
			f = Facts{}
		}
	}()
	conmon, err := e.startAndComplete(ctx, rt, s)
	if err != nil {
		return f, err
	}
	defer conmon.abandon()
	f.Rootfs, f.PIDNamespace = rootfsPath(*s), pidNamespace(s.Spec)
	if h := s.Spec.Hooks; h != nil {
		f.PlainStart, f.PlainDelete = len(h.Poststart) > 0, len(h.Poststop) > 0
	}
	useBPF := s.SeccompBPF != "" && rt.bpf.Load() && canUseBPF(s.Spec)
	if err := writeConfig(*s, useBPF); err != nil {
		return f, err
	}
	if s.Place != nil {
		if err := s.Place(ctx, conmon.cmd.Process.Pid); err != nil {
			return f, err
		}
	}
	if err := conmon.create(ctx, rt, s.Bundle, &f); err != nil {
		return f, err
	}
	if useBPF {
		want, err := base64.StdEncoding.DecodeString(s.SeccompBPF)
		if err != nil {
			return f, fmt.Errorf("compiled seccomp filter: %w", err)
		}
		if got, err := os.ReadFile(filepath.Join(rt.stateDir(s.ID), "seccomp.bpf")); err != nil || !bytes.Equal(got, want) {
			return f, errBPFIgnored
		}
	}
	if f.MountNS, err = mountNSOf(f.Init.PID); err != nil {
		return f, fmt.Errorf("mount namespace of the container: %w", err)
	}
	if f.Before, err = imageOf(f.Init.PID); err != nil {
		return f, fmt.Errorf("program of the container's init: %w", err)
	}
	return f, nil
}

// startAndComplete starts conmon and completes the specification at the same time.
// The caller must abandon what it gets.
func (e *Executor) startAndComplete(ctx context.Context, rt *runtime, s *CreateSpec) (*conmonStart, error) {
	var conmon *conmonStart
	var start errgroup.Group
	known := *s
	start.Go(func() (err error) {
		conmon, err = e.startConmon(rt, known)
		return err
	})
	err := errors.Join(s.complete(ctx), start.Wait())
	if err != nil && conmon != nil {
		conmon.abandon()
	}
	return conmon, err
}

// undoCreate takes back what a failed create made, whether or not the caller's
// context still lives.
func (e *Executor) undoCreate(ctx context.Context, rt *runtime, id string, f Facts) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	return e.remove(ctx, rt, id, f)
}

// canUseBPF: what crun takes from the profile besides the filter itself is
// kept, but a listener needs the profile.
func canUseBPF(s *specs.Spec) bool {
	return s.Linux.Seccomp != nil && s.Linux.Seccomp.ListenerPath == ""
}

func writeConfig(s CreateSpec, useBPF bool) error {
	spec := *s.Spec
	if useBPF {
		// The profile makes way for one that allows nothing: a runtime that
		// does not know the annotation then cannot run the container
		// unconfined. It is also less to parse in each call.
		linux := *spec.Linux
		linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Flags: spec.Linux.Seccomp.Flags}
		spec.Linux = &linux
		spec.Annotations = maps.Clone(spec.Annotations)
		if spec.Annotations == nil {
			spec.Annotations = map[string]string{}
		}
		spec.Annotations[bpfAnnotation] = s.SeccompBPF
	} else if _, ok := spec.Annotations[bpfAnnotation]; ok {
		// Annotations come from clients; this one replaces the profile.
		spec.Annotations = maps.Clone(spec.Annotations)
		delete(spec.Annotations, bpfAnnotation)
	}
	process := *spec.Process
	process.Terminal = s.Terminal
	spec.Process = &process
	b, err := json.Marshal(&spec)
	if err != nil {
		return fmt.Errorf("encode spec: %w", err)
	}
	if err := os.WriteFile(filepath.Join(s.Bundle, "config.json"), b, 0o600); err != nil {
		return fmt.Errorf("write spec: %w", err)
	}
	return nil
}

func rootfsPath(s CreateSpec) string {
	if filepath.IsAbs(s.Spec.Root.Path) {
		return s.Spec.Root.Path
	}
	return filepath.Join(s.Bundle, s.Spec.Root.Path)
}

func pidNamespace(s *specs.Spec) string {
	i := slices.IndexFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.PIDNamespace })
	switch {
	case i < 0:
		return "host"
	case s.Linux.Namespaces[i].Path == "":
		return "own"
	}
	return "shared"
}
