package pod

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/subpod/subpod/pkg/events"
	"github.com/subpod/subpod/pkg/oci"
	"github.com/subpod/subpod/pkg/state"
)

// crash is a request during which the server is killed, and a recovery in which a step
// fails.
type crash struct {
	before start
	client client
	node   node
	killed int // the step of the request before which the server is killed
	failed int // the step of the recovery at which inject happens
	inject injection
}

// node is what has become of the node when the next server starts.
type node int

const (
	same node = iota
	// lost: the sandboxes are gone, as after somebody has unmounted their namespaces.
	lost
	// rebooted: no process and no sandbox is left, but files are.
	rebooted
)

func (c crash) String() string {
	what := map[injection]string{nothing: "succeeds", failure: "fails", late: "fails late", full: "meets a full disk", broken: "fails again and again", kill: "is the server's end"}
	return fmt.Sprintf("%s, killed before step %d, node %d, step %d of the recovery %s", scenario{c.before, c.client, c.client}, c.killed, c.node, c.failed, what[c.inject])
}

// crashes are the requests, each on what it needs.
var crashes = []crash{
	{before: empty, client: runSame}, {before: empty, client: runWith}, {before: withPod, client: create},
	{before: withContainer, client: startContainer}, {before: withContainer, client: stop},
	{before: withProcess, client: exit}, {before: withProcess, client: stopContainer}, {before: withProcess, client: removeContainer},
	{before: withProcess, client: stop}, {before: withProcess, client: remove},
	{before: withExited, client: startAgain},
}

// TestRecovery kills the server at each step of each request, and lets each step of the
// recovery fail, or be the next server's end.
func TestRecovery(t *testing.T) {
	var runs atomic.Int64
	begin := time.Now()
	t.Run("all", func(t *testing.T) {
		for _, c := range crashes {
			for node := range rebooted + 1 {
				c := c // a subtest's own
				c.node = node
				t.Run(fmt.Sprintf("%s/%d", scenario{c.before, c.client, c.client}, c.node), func(t *testing.T) {
					t.Parallel()
					for more := true; more; c.killed++ {
						more = c.explore(t, &runs)
					}
				})
			}
		}
	})
	t.Logf("%d recoveries, %v", runs.Load(), time.Since(begin).Round(time.Millisecond))
}

// explore runs the recovery with all that can happen at each of its steps. It reports
// false when the request has fewer steps.
func (c crash) explore(t *testing.T, runs *atomic.Int64) (more bool) {
	execute := func() (o outcome) {
		synctest.Test(t, func(t *testing.T) { more = c.run(t, &o) })
		runs.Add(1)
		if len(o.faults) > 0 {
			t.Errorf("%s:\n  %s\nafter\n  %s", c, strings.Join(o.faults, "\n  "), strings.Join(o.names, "\n  "))
		}
		return o
	}
	steps := execute().names
	first := 0
	for i, step := range steps {
		if step == recovers {
			first = i + 1
		}
	}
	for i, step := range steps[first:] {
		c.failed = i
		for _, c.inject = range injections(step) {
			execute()
		}
	}
	return more
}

// recovers stands between the steps of the request and those of the recovery.
const recovers = "--- the server is killed, another one recovers"

// run is one crash and its recovery. It reports whether the request was killed.
func (c crash) run(t *testing.T, o *outcome) bool {
	r := &rig{t: t, ctx: t.Context(), w: newWorld(), bus: events.New(0), acked: &sync.Map{}, removed: &atomic.Bool{}}
	sub := r.bus.Subscribe()
	sched := &scheduler{open: true, done: map[string]string{}}
	r.s, r.m = newServer(r.w, sched, r.bus)
	r.m.Recover(r.ctx)
	r.prepare(scenario{before: c.before})
	synctest.Wait()
	sched.open = false
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = c.client.call(r)
	}()
	killed := r.stepTo(sched, done, c.killed, o) != nil
	sched.die()
	r.m.Close()
	<-done
	wasReady := c.meanwhile(r)
	o.names = append(o.names, recovers)
	c.recover(r, o)
	for id := range wasReady {
		if p, ok := r.w.pods[id]; !ok || p.Status.Phase != state.PodReady {
			o.faults = append(o.faults, "recovery lost the ready pod sandbox "+r.w.name(id))
		}
	}
	if c.node == same {
		r.checkAcked(o)
	}
	if c.inject == nothing || c.inject == kill {
		r.checkComplete(o)
	}
	inject := c.inject
	if inject == nothing {
		inject = kill // the first server's end
	}
	r.check(run{inject: inject}, o, nil, sub)
	r.m.Close()
	return killed
}

// stepTo lets a server's steps go on one by one up to the n-th, and returns that; nil
// when there are fewer until done is closed.
func (r *rig) stepTo(sched *scheduler, done chan struct{}, n int, o *outcome) *waiter {
	for idle := 0; idle < maxIdle; {
		synctest.Wait()
		waiting := sched.next()
		switch {
		case len(waiting) > 0 && n == 0:
			return waiting[0]
		case len(waiting) > 0:
			n--
			o.names = append(o.names, waiting[0].name)
			sched.release(waiting[0], sched.troubleOf(waiting[0].name))
			continue
		}
		select {
		case <-done:
			return nil
		default:
			idle++
			time.Sleep(time.Second)
		}
	}
	o.faults = append(o.faults, "a request hangs")
	return nil
}

// meanwhile is what happens while no server runs. It returns the pod sandboxes that
// must be ready after the recovery.
func (c crash) meanwhile(r *rig) map[string]bool {
	ready := map[string]bool{}
	for id, p := range r.w.pods {
		if c.node == same && p.Status.Phase == state.PodReady {
			ready[id] = true
		}
	}
	if c.node == lost {
		clear(r.w.sandboxes)
	}
	for id, p := range r.w.processes {
		if c.node == rebooted {
			r.w.end(id)
			delete(r.w.processes, id)
		}
		if record, ok := r.w.containers[id]; ok && !p.running() && p.started && record.Allocated.Runtime != nil {
			record.Allocated.Runtime = &oci.Container{} // an init process that is not alive
			r.w.containers[id] = record
		}
	}
	return ready
}

// recover starts the next server, and one more where that is killed.
func (c crash) recover(r *rig, o *outcome) {
	start := func(open bool) (*scheduler, chan struct{}) {
		sched, done := &scheduler{open: open, done: map[string]string{}}, make(chan struct{})
		r.s, r.m = newServer(r.w, sched, r.bus)
		if c.node == rebooted {
			r.m.NodeID = "the same node after a reboot"
		}
		go func() {
			defer close(done)
			r.m.Recover(r.ctx)
		}()
		return sched, done
	}
	sched, done := start(false)
	n := c.failed
	if c.inject == nothing {
		n = -1
	}
	w := r.stepTo(sched, done, n, o)
	if w != nil {
		o.names = append(o.names, w.name)
		switch c.inject {
		case failure:
			sched.release(w, errInjected)
		case late:
			sched.release(w, errLate)
		case full, broken:
			sched.trouble(c.inject, w.name)
			sched.release(w, errInjected)
		case kill:
			sched.die()
			r.m.Close()
			<-done
			sched, done = start(true)
		}
		r.stepTo(sched, done, -1, o)
	}
	<-done
	sched.letGo()
	synctest.Wait()
}

// checkComplete: a recovery in which nothing fails leaves nothing half made.
func (r *rig) checkComplete(o *outcome) {
	for id, p := range r.w.pods {
		if p.Status.Phase == state.PodCreating {
			o.faults = append(o.faults, "a pod sandbox is half made after the recovery: "+r.w.name(id))
		}
	}
	for id, c := range r.w.containers {
		if !c.Status.Created {
			o.faults = append(o.faults, "a container is half made after the recovery: "+r.w.name(id))
		}
	}
}

// checkAcked: what a client was told of is there.
func (r *rig) checkAcked(o *outcome) {
	r.acked.Range(func(id, _ any) bool {
		if _, ok := r.w.pods[id.(string)]; !ok && !r.removed.Load() {
			o.faults = append(o.faults, "the pod sandbox that a client was told of is lost: "+r.w.name(id.(string)))
		}
		return true
	})
}
