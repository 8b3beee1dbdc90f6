package pod

import (
	"context"
	"errors"
	"runtime"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/cgroup"
	"github.com/subpod/subpod/pkg/events"
	"github.com/subpod/subpod/pkg/oci"
	"github.com/subpod/subpod/pkg/pod/container"
	"github.com/subpod/subpod/pkg/pod/sandbox"
	"github.com/subpod/subpod/pkg/state"
)

// The tests of this file are about operations that take long, of which the lifecycle
// tests know nothing: there, whatever waits goes on at some time.

// newRig returns a rig whose steps do not stop.
func newRig(t *testing.T, before start) *rig {
	r := &rig{t: t, ctx: t.Context(), w: newWorld(), bus: events.New(0)}
	r.s, r.m = newServer(r.w, &scheduler{open: true, done: map[string]string{}}, r.bus)
	r.m.Recover(r.ctx)
	r.prepare(scenario{before: before})
	return r
}

// slowProcesses are processes whose operations hang until they are interrupted.
type slowProcesses struct{ processes }

func (slowProcesses) Start(ctx context.Context, _ string, _ oci.Container) error {
	return hang(ctx)
}

func (slowProcesses) Update(ctx context.Context, _ string, _ oci.Container, _ *specs.LinuxResources) error {
	return hang(ctx)
}

// hang takes as long as an OCI runtime may take.
func hang(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(2 * time.Minute):
		return oci.ErrRuntimeHangs
	}
}

// TestRemovalInterruptsWhatTakesForEver: an OCI runtime that hangs while it starts or
// updates a container must not hold up the removal.
func TestRemovalInterruptsWhatTakesForEver(t *testing.T) {
	for name, request := range map[string]func(*rig) error{
		"start": func(r *rig) error { return r.m.StartContainer(r.ctx, r.ctr) },
		"update": func(r *rig) error {
			return r.m.UpdateContainer(r.ctx, r.ctr, &runtimeapi.LinuxContainerResources{CpuShares: 512})
		},
	} {
		for what, remove := range map[string]func(*rig) error{
			"container": func(r *rig) error { return r.m.RemoveContainer(r.ctx, r.ctr) },
			"pod":       func(r *rig) error { return r.m.RemovePod(r.ctx, r.pod) },
		} {
			t.Run(name+"/"+what, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					r := newRig(t, withContainer)
					defer r.m.Close()
					r.m.Processes = slowProcesses{r.s}
					r.m.Host.Cgroup = cgroup.Delegation{Version: 2, Driver: cgroup.DriverCgroupfs, Root: t.TempDir()}
					answer := make(chan error, 1)
					go func() { answer <- request(r) }()
					synctest.Wait()
					begin := time.Now()
					if err := remove(r); err != nil {
						t.Fatalf("remove: %v", err)
					}
					if waited := time.Since(begin); waited > 0 {
						t.Errorf("the removal took %v", waited)
					}
					if err := <-answer; !errors.Is(err, errdefs.ErrAborted) {
						t.Errorf("the other request: %v, want ErrAborted", err)
					}
				})
			})
		}
	}
}

// TestAnInterruptedRequestSaysSo, also where it waits for another one.
func TestAnInterruptedRequestSaysSo(t *testing.T) {
	for name, request := range map[string]func(*rig) error{
		"start": func(r *rig) error { return r.m.StartContainer(r.ctx, r.ctr) },
		"create": func(r *rig) error {
			_, err := r.m.CreateContainer(r.ctx, r.pod, containerConfig("a"))
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, withContainer)
				defer r.m.Close()
				_, unlock, err := r.m.containerLocks.acquire(r.ctx, r.ctr, exclusive)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := r.m.containerNames.claim(r.ctx, containerName(r.pod, containerConfig("a").Metadata), "another"); err != nil {
					t.Fatal(err)
				}
				answer := make(chan error, 1)
				go func() { answer <- request(r) }()
				synctest.Wait()
				stopped := make(chan error, 1)
				go func() { stopped <- r.m.StopPod(r.ctx, r.pod) }()
				if err := <-answer; !errors.Is(err, errdefs.ErrAborted) {
					t.Errorf("%v, want ErrAborted", err)
				}
				unlock()
				if err := <-stopped; err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// foreignImages are of another architecture, and waitingSandboxes build until they are interrupted.
type (
	foreignImages    struct{ containers }
	waitingSandboxes struct{ sandboxes }
)

func (foreignImages) Prepare(context.Context, container.Plan, state.Pod, *state.Container) (*container.Prepared, error) {
	return nil, container.ErrForeignImage
}

func (waitingSandboxes) Build(ctx context.Context, _ sandbox.Plan, _ *state.Pod) error {
	for ctx.Err() == nil { // it sees that at once
		runtime.Gosched()
	}
	return ctx.Err()
}

// TestTheReasonIsTheFirst: of a pod sandbox and a container that are made at the same time, the
// one that cannot be made says why, not the one that is interrupted by that.
func TestTheReasonIsTheFirst(t *testing.T) {
	for range 300 {
		r := newRig(t, empty)
		r.m.Sandboxes, r.m.Containers = waitingSandboxes{r.m.Sandboxes}, foreignImages{r.m.Containers}
		_, _, err := r.m.RunPodWith(r.ctx, podConfig("other", ""), "", containerConfig("a"))
		r.m.Close()
		if !errors.Is(err, container.ErrForeignImage) {
			t.Fatal(err)
		}
	}
}

// brokenSandboxes fail to build, and to tear down what was built, until they are mended.
type brokenSandboxes struct {
	sandboxes
	mended atomic.Bool
}

func (s *brokenSandboxes) Build(ctx context.Context, plan sandbox.Plan, p *state.Pod) error {
	if !s.mended.Load() {
		return syscall.EMFILE
	}
	return s.sandboxes.Build(ctx, plan, p)
}

func (s *brokenSandboxes) Teardown(ctx context.Context, p state.Pod) error {
	if !s.mended.Load() {
		return syscall.EMFILE
	}
	return s.sandboxes.Teardown(ctx, p)
}

// TestAFailedCreationGivesItsNameBack: where a creation fails and cannot be undone at
// once, the same request succeeds later, without anybody removing what the first one left.
func TestAFailedCreationGivesItsNameBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, empty)
		defer r.m.Close()
		broken := &brokenSandboxes{sandboxes: r.s}
		r.m.Sandboxes = broken
		run := func() (string, error) { return r.m.RunPod(r.ctx, podConfig("web", ""), "") }
		if _, err := run(); !errors.Is(err, syscall.EMFILE) {
			t.Fatalf("%v, want EMFILE", err)
		}
		if _, err := run(); !errors.Is(err, ErrNameTaken) {
			t.Errorf("what the first request left is there: %v, want ErrNameTaken", err)
		}
		time.Sleep(10 * time.Second) // it is tried again, and fails again
		broken.mended.Store(true)
		time.Sleep(autoRemoveMaxPause)
		synctest.Wait()
		if left := r.w.leftovers(); len(left) > 0 {
			t.Errorf("left: %q", left)
		}
		if _, err := run(); err != nil {
			t.Error(err)
		}
	})
}

// TestAStoppingServerKillsNothing: the grace period of a StopContainer that waits when
// the server stops goes on; the client asks the next server.
func TestAStoppingServerKillsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, withProcess)
		patient := &patientProcesses{processes: r.s}
		r.m.Processes = patient
		answer := make(chan error, 1)
		go func() { answer <- r.m.StopContainer(r.ctx, r.ctr, time.Minute) }()
		synctest.Wait()
		r.m.Close()
		if err := <-answer; err == nil {
			t.Error("StopContainer succeeded, and the container runs")
		}
		if n := patient.signals.Load(); n != 1 {
			t.Errorf("%d signals were sent, want the first one only", n)
		}
	})
}

// patientProcesses handle SIGTERM, and take their time.
type patientProcesses struct {
	processes
	signals atomic.Int32
}

func (p *patientProcesses) Signal(context.Context, string, oci.Container, syscall.Signal, bool) error {
	p.signals.Add(1)
	return nil
}

// TestEventsOfAContainerThatEndsAtOnce: it was created first, whatever the goroutines
// of the server are busy with.
func TestEventsOfAContainerThatEndsAtOnce(t *testing.T) {
	for name, request := range map[string]func(*rig) error{
		"create": func(r *rig) error {
			_, err := r.m.CreateContainer(r.ctx, r.pod, containerConfig("a"))
			return err
		},
		"run": func(r *rig) error {
			_, _, err := r.m.RunPodWith(r.ctx, podConfig("other", ""), "", containerConfig("a"))
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, withPod)
				defer r.m.Close()
				sub := r.bus.Subscribe()
				slow := &slowRecords{server: r.s}
				r.m.Processes, r.m.exits.processes, r.m.events.state = endedProcesses{r.s}, endedProcesses{r.s}, slow
				slow.armed.Store(true)
				if err := request(r); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Minute)
				r.bus.Close()
				for _, fault := range r.checkEvents(run{}, sub) {
					t.Error(fault)
				}
			})
		})
	}
}

// slowRecords lets the first reader of a pod sandbox wait.
type slowRecords struct {
	*server
	armed atomic.Bool
}

func (s *slowRecords) Pod(id string) (state.Pod, error) {
	if s.armed.CompareAndSwap(true, false) {
		time.Sleep(time.Second)
	}
	return s.server.Pod(id)
}

// endedProcesses have ended as soon as somebody looks.
type endedProcesses struct{ processes }

func (endedProcesses) Wait(context.Context, string, oci.Container) (oci.Exit, error) {
	return oci.Exit{Code: 137, At: time.Now()}, nil
}
