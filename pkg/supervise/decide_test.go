package supervise

import (
	"errors"
	"testing"
	"time"

	"github.com/subpod/subpod/pkg/workload"
)

var t0 = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

func at(d time.Duration) time.Time { return t0.Add(d) }

func main1(policy string, limit uint32) *workload.Spec {
	return &workload.Spec{Backoff: workload.RunBackoff, Containers: []workload.Container{
		{Name: "c", Role: workload.Main, Restart: workload.Policy{Name: policy, Max: limit}},
	}}
}

func ran(restarts, failures uint32) workload.Status {
	return workload.Status{}.With("c", workload.Progress{Ran: true, Restarts: restarts, Failures: failures})
}

// anew is that status in a sandbox that was built again.
func anew(st workload.Status) workload.Status { st.Generation++; return st }

// untilLater is a container whose last try to start it has failed.
func untilLater(c container) container {
	c.failed, c.retry = errors.New("no image"), at(time.Hour)
	return c
}

func exit(code int32, started, finished time.Duration) container {
	return container{state: exited, code: code, started: at(started), finished: at(finished)}
}

func one(c container) seen { return seen{ready: true, containers: map[string]container{"c": c}} }

// TestPolicies: what follows the exit of a container, by its policy.
func TestPolicies(t *testing.T) {
	for _, test := range []struct {
		name   string
		spec   *workload.Spec
		st     workload.Status
		seen   seen
		want   action
		failed bool
		at     time.Duration // of wait
	}{
		{"no, code 0", main1(workload.No, 0), ran(0, 0), one(exit(0, 0, 1)), finish, false, 0},
		{"no, code 1", main1(workload.No, 0), ran(0, 0), one(exit(1, 0, 1)), finish, true, 0},
		{"on-failure, code 0", main1(workload.OnFailure, 0), ran(0, 0), one(exit(0, 0, 1)), finish, false, 0},
		{"on-failure, code 1: waits", main1(workload.OnFailure, 0), ran(0, 0), one(exit(1, 0, time.Minute)), wait, false, time.Minute + 100*time.Millisecond},
		{"on-failure, the limit is reached", main1(workload.OnFailure, 2), ran(2, 2), one(exit(1, 0, 1)), finish, true, 0},
		{"on-failure, one is left", main1(workload.OnFailure, 2), ran(1, 1), one(exit(1, 0, -time.Hour)), start, false, 0},
		{"always, code 0", main1(workload.Always, 0), ran(7, 0), one(exit(0, -time.Hour, -time.Minute)), start, false, 0},
		{"unless-stopped, code 0", main1(workload.UnlessStopped, 0), ran(0, 0), one(exit(0, -time.Hour, -time.Minute)), start, false, 0},
		{"the longest pause", main1(workload.Always, 0), ran(40, 40), one(exit(1, time.Minute-time.Second, time.Minute)), wait, false, 2 * time.Minute},
		{"it ran for long: the first pause", main1(workload.Always, 0), ran(40, 40), one(exit(1, 0, time.Minute)), wait, false, time.Minute + 100*time.Millisecond},
		{"the clock was set back since the exit", main1(workload.Always, 0), ran(40, 40), one(exit(1, time.Hour-time.Second, time.Hour)), start, false, 0},
		{"it runs", main1(workload.Always, 0), ran(0, 0), one(container{state: running, up: true}), wait, false, -1},
		{"created", main1(workload.Always, 0), ran(0, 0), one(container{state: created}), start, false, 0},
		{"it was removed", main1(workload.Always, 0), ran(0, 0), seen{ready: true}, start, false, 0},
		{"no sandbox", main1(workload.Always, 0), ran(0, 0), seen{containers: map[string]container{"c": exit(137, 0, 1)}}, rebuild, false, 0},
		{"no sandbox, tried just now", main1(workload.Always, 0), ran(0, 0), seen{retry: at(time.Hour), containers: map[string]container{"c": exit(137, 0, 1)}}, wait, false, time.Hour},
		{"no sandbox, on-failure, it was killed with the node", main1(workload.OnFailure, 0), ran(0, 0), seen{containers: map[string]container{"c": exit(137, 0, 1)}}, rebuild, false, 0},
		{"no sandbox, on-failure, it has succeeded", main1(workload.OnFailure, 0), ran(0, 0), seen{containers: map[string]container{"c": exit(0, 0, 1)}}, finish, false, 0},
		{"no sandbox, no", main1(workload.No, 0), ran(0, 0), seen{containers: map[string]container{"c": exit(137, 0, 1)}}, finish, true, 0},
		{"it cannot be made", main1(workload.No, 0), ran(0, 0), one(container{failed: errors.New("no image")}), finish, true, 0},
		{"it cannot be made, and may be later", main1(workload.Always, 0), ran(0, 0), one(container{failed: errors.New("no image"), retry: at(time.Hour)}), wait, false, time.Hour},
		{"of an earlier sandbox", main1(workload.Always, 0), anew(ran(0, 0)), one(exit(137, 0, time.Minute)), start, false, 0},
		{"of an earlier sandbox, it cannot be made again", main1(workload.Always, 0), anew(ran(0, 0)), one(untilLater(exit(137, 0, time.Minute))), wait, false, time.Hour},
		{"it never ran, and cannot be made again", main1(workload.Always, 0), workload.Status{}, one(untilLater(exit(128, 0, 1))), wait, false, time.Hour},
		{"the clock was set back, and it cannot be made again", main1(workload.Always, 0), ran(0, 0), one(untilLater(exit(1, time.Hour-time.Second, 2*time.Hour))), wait, false, time.Hour},
		{"done", main1(workload.Always, 0), workload.Status{Done: true}, seen{containers: one(exit(0, 0, 1)).containers}, end, false, 0},
		{"done, and its sandbox is there", main1(workload.Always, 0), workload.Status{Done: true}, one(exit(0, 0, 1)), tidy, false, 0},
		{"created", main1(workload.Always, 0), workload.Status{Stopped: true}, one(container{state: created}), end, false, 0},
	} {
		d := decide(test.spec, test.st, test.seen, at(time.Minute))
		if d.action != test.want || d.failed != test.failed {
			t.Errorf("%s: %+v", test.name, d)
		}
		switch {
		case test.want == wait && test.at < 0 && !d.at.IsZero(), test.want == wait && test.at >= 0 && !d.at.Equal(at(test.at)):
			t.Errorf("%s: waits until %v", test.name, d.at.Sub(t0))
		}
	}
}

// TestStopped: what the user has stopped stays stopped; with always until the next node.
func TestStopped(t *testing.T) {
	for _, policy := range []string{workload.No, workload.OnFailure, workload.UnlessStopped, workload.Always} {
		spec := main1(policy, 0)
		st := ran(3, 3)
		st.Stopped = true
		s := one(exit(143, 0, 1))
		if d := decide(spec, st, s, t0); d.action != end {
			t.Errorf("%s: %+v", policy, d)
		}
		s.rebooted, s.ready = true, false
		want := end
		if policy == workload.Always {
			want = resume
		}
		if d := decide(spec, st, s, t0); d.action != want {
			t.Errorf("%s, in a new node: %+v", policy, d)
		}
		st = st.Resumed()
		if d := decide(spec, st, seen{containers: s.containers}, t0); d.action != rebuild {
			t.Errorf("%s, started again: %+v", policy, d)
		}
		if d := decide(spec, st, one(exit(143, 0, 1)), t0); d.action != start {
			t.Errorf("%s, started again, its sandbox is there: %+v", policy, d)
		}
	}
	// One container alone, by its user.
	spec, st := main1(workload.Always, 0), workload.Status{}.With("c", workload.Progress{Ran: true, Stopped: true})
	if d := decide(spec, st, one(exit(143, 0, 1)), t0); d.action != stopped {
		t.Errorf("the only container is stopped: %+v", d)
	}
	// What was created and never started is not started by a new node.
	st = workload.Status{Stopped: true}
	if d := decide(spec, st, seen{rebooted: true, containers: map[string]container{"c": {state: created}}}, t0); d.action != end {
		t.Errorf("created: %+v", d)
	}
}

// TestOrder: inits one after the other, sidecars before what follows them, then mains; all
// of them again in another sandbox.
func TestOrder(t *testing.T) {
	always, onFailure := workload.Policy{Name: workload.UnlessStopped}, workload.Policy{Name: workload.OnFailure}
	spec := &workload.Spec{Backoff: workload.PlayBackoff, Containers: []workload.Container{
		{Name: "init1", Role: workload.Init, Restart: onFailure},
		{Name: "side", Role: workload.Sidecar, Restart: always},
		{Name: "init2", Role: workload.Init, Restart: onFailure},
		{Name: "main1", Role: workload.Main, Restart: onFailure},
		{Name: "main2", Role: workload.Main, Restart: onFailure},
	}}
	s := seen{ready: true, containers: map[string]container{}}
	var st workload.Status
	expect := func(what action, name string) {
		t.Helper()
		d := decide(spec, st, s, t0)
		got := ""
		if d.container != nil {
			got = d.container.Name
		}
		if d.action != what || got != name {
			t.Fatalf("%+v %s, not %v %s", d, got, what, name)
		}
		if what == start {
			st = st.With(name, restarted(spec, st.Containers[name], s.containers[name], st.Generation))
		}
	}
	run := func(name string, up bool) { s.containers[name] = container{state: running, started: t0, up: up} }
	end := func(name string, code int32) { s.containers[name] = exit(code, -2, -1) }
	expect(start, "init1")
	run("init1", true)
	expect(wait, "")
	end("init1", 1) // the first restart comes at once
	expect(start, "init1")
	end("init1", 0)
	expect(start, "side")
	run("side", false) // its startup probe has not succeeded yet
	expect(wait, "")
	run("side", true)
	expect(start, "init2")
	end("init2", 0)
	expect(start, "main1")
	run("main1", true)
	expect(start, "main2")
	run("main2", true)
	expect(wait, "")
	end("side", 0) // a sidecar is restarted while the pod runs
	expect(start, "side")
	run("side", true)
	end("main1", 0)
	expect(wait, "")
	// The node ends: what has succeeded stays so, the inits run once more.
	s.ready = false
	end("side", 137)
	end("main2", 137)
	expect(rebuild, "")
	s.ready = true
	st.Generation++
	expect(start, "init1")
	end("init1", 0)
	expect(start, "side")
	run("side", true)
	expect(start, "init2")
	end("init2", 0)
	expect(start, "main2")
	end("main2", 0)
	expect(finish, "")
}

// TestDeadline: a pod ends at its deadline, and is looked at then.
func TestDeadline(t *testing.T) {
	spec := main1(workload.Always, 0)
	spec.Deadline = time.Minute
	st := ran(0, 0)
	st.StartedAt = t0
	s := one(container{state: running, up: true})
	if d := decide(spec, st, s, at(time.Second)); d.action != wait || !d.at.Equal(at(time.Minute)) {
		t.Errorf("before it: %+v", d)
	}
	if d := decide(spec, st, s, at(time.Minute)); d.action != finish || !d.failed {
		t.Errorf("at it: %+v", d)
	}
}

// TestBackoff: the pauses that a container gets which always fails, at once.
func TestBackoff(t *testing.T) {
	for _, test := range []struct {
		backoff workload.Backoff
		want    []time.Duration
	}{
		{workload.RunBackoff, []time.Duration{100 * time.Millisecond, 200 * time.Millisecond, 400 * time.Millisecond, 800 * time.Millisecond}},
		{workload.PlayBackoff, []time.Duration{0, 10 * time.Second, 20 * time.Second, 40 * time.Second, 80 * time.Second, 160 * time.Second, 5 * time.Minute, 5 * time.Minute}},
	} {
		spec := main1(workload.Always, 0)
		spec.Backoff = test.backoff
		st := workload.Status{}
		now := t0
		s := one(container{state: created})
		for i, want := range test.want {
			st = st.With("c", restarted(spec, st.Containers["c"], s.containers["c"], 0))
			s = one(container{state: exited, code: 1, started: now, finished: now})
			d := decide(spec, st, s, now)
			if want == 0 && d.action != start || want > 0 && !d.at.Equal(now.Add(want)) {
				t.Fatalf("restart %d: %+v, not after %v", i+1, d, want)
			}
			now = now.Add(want)
			if d = decide(spec, st, s, now); d.action != start {
				t.Fatalf("restart %d: %+v after %v", i+1, d, want)
			}
		}
		if got := st.Containers["c"].Restarts; got != uint32(len(test.want)-1) {
			t.Errorf("%d restarts were counted", got)
		}
	}
}
