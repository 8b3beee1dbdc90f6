package pod

import (
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/subpod/subpod/pkg/api"
	"github.com/subpod/subpod/pkg/events"
)

// TestAutomaticRemovalGoesOn fails the automatic removal of a pod at each of its steps,
// once, and kills the server there: the pod is removed all the same.
func TestAutomaticRemovalGoesOn(t *testing.T) {
	for _, fault := range []error{errInjected, errLate, errKilled} {
		for at, more := 1, true; more; at++ {
			synctest.Test(t, func(t *testing.T) {
				name, left := removeAutomatically(t, at, fault)
				if more = name != ""; len(left) > 0 {
					t.Errorf("step %d, %q: %v: left behind: %s", at, name, fault, strings.Join(left, ", "))
				}
			})
		}
	}
}

// removeAutomatically returns the step that failed, "" if there were fewer, and what is
// left in the end.
func removeAutomatically(t *testing.T, at int, fault error) (failed string, left []string) {
	r := newRig(t, empty)
	cfg := podConfig("web", "")
	cfg.Annotations[api.AnnotationWhenDone] = api.WhenDoneRemove
	cfg.Labels = map[string]string{api.LabelMadeBy: api.MadeByRun}
	_, id, err := r.m.RunPodWith(r.ctx, cfg, "", containerConfig("a"))
	if err == nil {
		err = r.m.StartContainer(r.ctx, id)
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
