package pod

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/api"
	"github.com/subpod/subpod/pkg/events"
	"github.com/subpod/subpod/pkg/state"
	"github.com/subpod/subpod/pkg/workload"
)

// withSupervised calls test with a server that has a pod with one container that runs and
// is restarted.
func withSupervised(t *testing.T, test func(r *rig)) {
	synctest.Test(t, func(t *testing.T) {
		r := &rig{t: t, ctx: t.Context(), w: newWorld(), bus: events.New(0), acked: &sync.Map{}, removed: &atomic.Bool{}}
		r.s, r.m = newServer(r.w, &scheduler{open: true, done: map[string]string{}}, r.bus)
		r.m.Recover(r.ctx)
		r.prepare(scenario{before: withProcess})
		_, err := r.m.State.UpdatePod(r.pod, func(p *state.Pod) error {
			p.Workload = &workload.Spec{Containers: []workload.Container{{Name: "c", Role: workload.Main, Restart: workload.Policy{Name: workload.Always}}}}
			p.Supervision = workload.Status{}.With("c", workload.Progress{Ran: true})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		test(r)
		r.m.Close()
		r.bus.Close()
	})
}

func (r *rig) supervision() workload.Status {
	p, err := r.m.State.Pod(r.pod)
	if err != nil {
		r.t.Fatal(err)
	}
	return p.Supervision
}

// TestStopInNewNode: what was stopped in an earlier node is stopped in this one by its
// user, too: the supervisor does not resume it.
func TestStopInNewNode(t *testing.T) {
	for name, stop := range map[string]func(r *rig) error{
		"the pod":       func(r *rig) error { return r.m.StopPod(r.ctx, r.pod) },
		"the container": func(r *rig) error { return r.m.StopContainer(r.ctx, r.ctr, 0) },
	} {
		withSupervised(t, func(r *rig) {
			if err := r.m.StopPod(r.ctx, r.pod); err != nil {
				t.Fatal(err)
			}
			r.m.NodeID = "another"
			if err := r.m.stopPod(r.ctx, r.pod, func() bool { return true }); err != nil || r.supervision().StoppedIn != "node" {
				t.Errorf("%s: a stop of its own accord: %v, %+v", name, err, r.supervision())
			}
			if err := stop(r); err != nil || r.supervision().StoppedIn != "another" {
				t.Errorf("%s: %v, %+v", name, err, r.supervision())
			}
		})
	}
}

// TestFinishOfStarted: what its user has started meanwhile is not ended.
func TestFinishOfStarted(t *testing.T) {
	withSupervised(t, func(r *rig) {
		if err := (Restarter{r.m}).Finish(r.ctx, r.pod); err != nil {
			t.Fatal(err)
		}
		c, err := r.m.State.Container(r.ctr)
		if err != nil || !c.Status.FinishedAt.IsZero() {
			t.Errorf("%v, %+v", err, c.Status)
		}
	})
}

// lateState has something happen before a container's record is read.
type lateState struct {
	records
	before func()
}

func (l lateState) Container(id string) (state.Container, error) {
	l.before()
	return l.records.Container(id)
}

// TestFinishOfStartedMeanwhile: what its user starts while a pod is finished is not ended.
func TestFinishOfStartedMeanwhile(t *testing.T) {
	withSupervised(t, func(r *rig) {
		setStopped := func(stopped bool) {
			_, err := r.m.State.UpdatePod(r.pod, func(p *state.Pod) error {
				p.Supervision.Stopped = stopped
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		}
		setStopped(true)
		st := r.m.State
		r.m.State = lateState{st, func() { setStopped(false) }}
		if err := (Restarter{r.m}).Finish(r.ctx, r.pod); err != nil {
			t.Error(err)
		}
		r.m.State = st
		if c, err := st.Container(r.ctr); err != nil || !c.Status.FinishedAt.IsZero() {
			t.Errorf("%v, %+v", err, c.Status)
		}
	})
}

// TestStopOfItsOwnAccordInterruptsNothing: a stop that nobody has asked for waits for what goes
// on in the pod, such as a start, and sees then whether it is still due.
func TestStopOfItsOwnAccordInterruptsNothing(t *testing.T) {
	for _, due := range []bool{false, true} {
		withSupervised(t, func(r *rig) {
			start, err := r.m.pod(r.ctx, r.pod, shared)
			if err != nil {
				t.Fatal(err)
			}
			stopped := make(chan error, 1)
			go func() { stopped <- r.m.stopPod(r.ctx, r.pod, func() bool { return due }) }()
			synctest.Wait()
			if err := start.ctx.Err(); err != nil {
				t.Errorf("due %v: the start is interrupted: %v", due, err)
			}
			start.unlock()
			if err := <-stopped; err != nil {
				t.Error(err)
			}
			if p, err := r.m.State.Pod(r.pod); err != nil || isStopped(p) != due {
				t.Errorf("due %v: the pod is %s, %v", due, p.Status.Phase, err)
			}
		})
	}
}

// TestKillOfRenamed: the user's word is on record under the name that the container has in
// the specification, also where its own was changed by a rename that goes on, or that the
// server has died in.
func TestKillOfRenamed(t *testing.T) {
	withSupervised(t, func(r *rig) {
		if err := (Restarter{r.m}).renameContainer(context.Background(), r.ctr, "c", "d"); err != nil {
			t.Fatal(err)
		}
		if err := (Restarter{r.m}).MarkStopped(r.ctx, r.ctr); err != nil || !r.supervision().Containers["c"].Stopped {
			t.Errorf("%v, %+v", err, r.supervision())
		}
	})
}

// TestRename: the network learns a new name, and one that a later server could not read is
// refused: that would take the pod's addresses away.
func TestRename(t *testing.T) {
	withSupervised(t, func(r *rig) {
		_, err := r.m.State.UpdatePod(r.pod, func(p *state.Pod) error {
			p.Config.V.Labels = map[string]string{api.LabelMadeBy: api.MadeByRun}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		rename := (Restarter{r.m}).Rename
		if err := rename(r.ctx, r.pod, "no name"); !errdefs.IsInvalidArgument(err) {
			t.Errorf("a name with a blank: %v", err)
		}
		if err := rename(r.ctx, r.pod, "next"); err != nil || !slices.Equal(r.w.renamed, []string{"next next"}) {
			t.Errorf("%v, the network is told %q", err, r.w.renamed)
		}
	})
}

// TestWaitForRun: who waits for a run gets its end, also when others have begun before the
// server was asked.
func TestWaitForRun(t *testing.T) {
	withSupervised(t, func(r *rig) {
		wanted := func(state.Pod) bool { return true }
		end := func() {
			t.Helper()
			if err := r.s.exit(r.ctr); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		wait := func(attempt uint32) (state.ContainerStatus, error) {
			return r.m.WaitContainer(r.ctx, r.ctr, &attempt)
		}
		var ends []state.ContainerStatus
		for n := range uint32(7) {
			if n > 0 {
				time.Sleep(time.Second)
				if _, err := wait(n); !errdefs.IsFailedPrecondition(err) {
					t.Errorf("run %d before it began: %v", n, err)
				}
				if err := (Restarter{r.m}).StartAgain(r.ctx, r.ctr, nil, false, wanted); err != nil {
					t.Fatal(err)
				}
				if st, err := wait(n - 1); err != nil || st.ExitCode != 7 || !st.FinishedAt.Equal(ends[n-1].FinishedAt) {
					t.Errorf("run %d after the next one began: %v, %+v, it ended at %v", n-1, err, st, ends[n-1].FinishedAt)
				}
			}
			waited := make(chan state.ContainerStatus, 1)
			go func() {
				st, err := wait(n)
				if err != nil {
					t.Error(err)
				}
				waited <- st
			}()
			synctest.Wait()
			if len(waited) != 0 {
				t.Errorf("the wait for run %d returned before its end", n)
			}
			end()
			ends = append(ends, <-waited)
		}
		if st, err := wait(2); err != nil || !st.FinishedAt.Equal(ends[2].FinishedAt) {
			t.Errorf("four runs later: %v, %+v", err, st)
		}
		if _, err := wait(1); !errdefs.IsNotFound(err) {
			t.Errorf("a run of which nothing is known any more: %v", err)
		}
	})
}

// TestWaitForRunThatIsNone: who waits for a run while it is being recorded is told when that
// fails.
func TestWaitForRunThatIsNone(t *testing.T) {
	withSupervised(t, func(r *rig) {
		if err := r.s.exit(r.ctr); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		var waited chan state.ContainerStatus
		r.s.step = func(name string) error {
			if waited != nil || !strings.HasPrefix(name, "put container") {
				return nil
			}
			waited = make(chan state.ContainerStatus, 1)
			go func() {
				st, err := r.m.WaitContainer(r.ctx, r.ctr, nil)
				if err != nil {
					t.Error(err)
				}
				waited <- st
			}()
			synctest.Wait()
			return errInjected
		}
		if err := (Restarter{r.m}).StartAgain(r.ctx, r.ctr, nil, false, func(state.Pod) bool { return true }); !errors.Is(err, errInjected) {
			t.Fatal(err)
		}
		select {
		case st := <-waited:
			if st.ExitCode != 7 {
				t.Errorf("%+v", st)
			}
		case <-time.After(time.Hour):
			t.Error("it is waited for what never was")
		}
	})
}

// meanwhile are records of which the first look at a pod is over when others have been there.
type meanwhile struct {
	records
	others func()
}

func (m *meanwhile) Pod(id string) (state.Pod, error) {
	p, err := m.records.Pod(id)
	if others := m.others; others != nil {
		m.others = nil
		others()
	}
	return p, err
}

// TestTwoStartsAtOnce: of two clients that start a stopped pod at the same time, the second does
// not end what the first has started.
func TestTwoStartsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, withExited)
		defer r.m.Close()
		if err := r.m.StopPod(r.ctx, r.pod); err != nil {
			t.Fatal(err)
		}
		yes := func(state.Pod) bool { return true }
		r.m.State = &meanwhile{r.s, func() {
			first := Restarter{r.m}
			if err := first.Rebuild(r.ctx, r.pod, yes); err != nil {
				t.Fatal(err)
			}
			if err := first.StartAgain(r.ctx, r.ctr, nil, false, yes); err != nil {
				t.Fatal(err)
			}
		}}
		if err := (Restarter{r.m}).Rebuild(r.ctx, r.pod, yes); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if c, err := r.m.State.Container(r.ctr); err != nil || c.State() != runtimeapi.ContainerState_CONTAINER_RUNNING {
			t.Errorf("the container is %s, %+v, %v", c.StateWord(), c.Status, err)
		}
	})
}
