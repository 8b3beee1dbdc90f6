package pod

import (
	"context"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/oci"
	"github.com/subpod/subpod/pkg/proc"
	"github.com/subpod/subpod/pkg/state"
)

// deafProcesses cannot be waited for, so many times.
type deafProcesses struct {
	processes
	fails atomic.Int32
}

func (p *deafProcesses) Wait(ctx context.Context, id string, c oci.Container) (oci.Exit, error) {
	if p.fails.Add(-1) >= 0 {
		return oci.Exit{}, syscall.EMFILE
	}
	return p.processes.Wait(ctx, id, c)
}

// TestWaitThatFails: a server that cannot wait for a container, for want of descriptors,
// ends none that runs, and learns its exit code later.
func TestWaitThatFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, withPod)
		defer r.m.Close()
		deaf := &deafProcesses{processes: r.s}
		deaf.fails.Store(20)
		r.m.exits.processes = deaf
		id, err := r.m.CreateContainer(r.ctx, r.pod, containerConfig("c"))
		if err != nil {
			t.Fatal(err)
		}
		if err := r.m.StartContainer(r.ctx, id); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		c, err := r.m.State.Container(id)
		if err != nil || c.State() != runtimeapi.ContainerState_CONTAINER_RUNNING {
			t.Fatalf("it is %s, %+v, %v; want that it runs", c.StateWord(), c.Status, err)
		}
		if err := r.s.exit(id); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if c, err = r.m.State.Container(id); err != nil || c.Status.ExitCode != 7 || c.Status.Reason != reasonError {
			t.Errorf("after its end: %+v, %v", c.Status, err)
		}
	})
}

// TestWaitThatFailsForGood: a container that has ended has an exit status soon, also where
// nobody can tell which.
func TestWaitThatFailsForGood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, withPod)
		defer r.m.Close()
		deaf := &deafProcesses{processes: r.s}
		deaf.fails.Store(1 << 30)
		r.m.exits.processes = deaf
		ended := proc.ID{PID: self.PID, StartTime: self.StartTime + 1}
		c := state.Container{ID: "c", PodID: r.pod, Allocated: state.ContainerResources{Runtime: &oci.Container{Init: ended}}}
		c.Status.Created, c.Status.StartedAt = true, time.Now()
		if err := r.s.PutContainer(c); err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		w, _ := r.m.exits.begin(c)
		if !r.m.exits.follow(r.ctx, c, w) || w.status.Reason != reasonUnknown || w.status.ExitCode != exitUnknown {
			t.Errorf("%+v", w.status)
		}
		if took := time.Since(begin); took > killTimeout/2 {
			t.Errorf("it took %v: who stops it waits for %v", took, killTimeout)
		}
	})
}
