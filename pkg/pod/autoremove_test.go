package pod

import (
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/subpod/subpod/pkg/api"
	"github.com/subpod/subpod/pkg/events"
	"github.com/subpod/subpod/pkg/state"
	"github.com/subpod/subpod/pkg/workload"
)

// TestAutomaticRemovalGoesOn fails the automatic removal of a pod at each of its steps,
// once, and kills the server there: the pod is removed all the same, also one of "subpod
// create" that its user has stopped.
func TestAutomaticRemovalGoesOn(t *testing.T) {
	for _, stopped := range []bool{false, true} {
		for _, fault := range []error{errInjected, errLate, errKilled} {
			for at, more := 1, true; more; at++ {
				synctest.Test(t, func(t *testing.T) {
					name, left := removeAutomatically(t, at, fault, stopped)
					if more = name != ""; len(left) > 0 {
						t.Errorf("step %d, %q: %v: left behind: %s", at, name, fault, strings.Join(left, ", "))
					}
				})
			}
		}
	}
}

// removeAutomatically returns the step that failed, "" if there were fewer, and what is
// left in the end.
func removeAutomatically(t *testing.T, at int, fault error, stopped bool) (failed string, left []string) {
	r := newRig(t, empty)
	cfg := podConfig("web", "")
	cfg.Annotations[api.AnnotationWhenDone] = api.WhenDoneRemove
	cfg.Labels = map[string]string{api.LabelMadeBy: api.MadeByRun}
	podID, id, err := r.m.RunPodWith(r.ctx, cfg, "", containerConfig("a"))
	if err == nil {
		err = r.m.StartContainer(r.ctx, id)
	}
	if err == nil && stopped {
		_, err = r.m.State.UpdatePod(podID, func(p *state.Pod) error {
			p.Workload, p.Supervision.Stopped = &workload.Spec{Containers: []workload.Container{{Name: "a", Role: workload.Main}}}, true
			return nil
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	var steps atomic.Int64
	var dead atomic.Bool
	step := func(name string) error {
		switch {
		case dead.Load():
			return errKilled
		case int(steps.Add(1)) != at:
			return nil
		}
		if failed = name; fault != errKilled && strings.HasPrefix(name, "after ") {
			return nil
		}
		dead.Store(fault == errKilled)
		return fault
	}
	r.s.step = step
	r.w.mu.Lock()
	r.w.end(id)
	r.w.mu.Unlock()
	synctest.Wait()
	if dead.Load() {
		r.m.Close()
		r.s, r.m = newServer(r.w, &scheduler{open: true, done: map[string]string{}}, events.New(0))
		r.m.Recover(r.ctx)
	}
	time.Sleep(2 * autoRemoveMaxPause)
	synctest.Wait()
	r.m.Close()
	return failed, r.w.leftovers()
}

// TestKilledRestartKeepsPod kills the server at each step of a restart of what "subpod run"
// has made: the next one does not take it for something that was never started.
func TestKilledRestartKeepsPod(t *testing.T) {
	for at, more := 1, true; more; at++ {
		withSupervised(t, func(r *rig) {
			_, err := r.m.State.UpdatePod(r.pod, func(p *state.Pod) error {
				cfg := proto.CloneOf(p.Config.V)
				cfg.Annotations[api.AnnotationWhenDone], cfg.Labels = api.WhenDoneStop, map[string]string{api.LabelMadeBy: api.MadeByRun}
				p.Config = state.Msg(cfg)
				return nil
			})
			if err == nil {
				err = r.s.exit(r.ctr)
			}
			if err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			steps, failed := 0, ""
			r.s.step = func(name string) error {
				if steps++; steps < at {
					return nil
				} else if steps == at {
					failed = name
				}
				return errKilled
			}
			err = (Restarter{r.m}).StartAgain(r.ctx, r.ctr, nil, false, func(state.Pod) bool { return true })
			if more = failed != ""; more == (err == nil) {
				t.Fatalf("step %d, %q: %v", at, failed, err)
			}
			r.m.Close()
			r.s, r.m = newServer(r.w, &scheduler{open: true, done: map[string]string{}}, r.bus)
			r.m.Recover(r.ctx)
			synctest.Wait()
			if c, err := r.m.State.Container(r.ctr); err != nil || c.Status.Removing {
				t.Errorf("killed at step %d, %q: %v, %+v", at, failed, err, c.Status)
			}
		})
	}
}
