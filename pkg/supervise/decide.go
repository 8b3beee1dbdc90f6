package supervise

import (
	"fmt"
	"time"

	"github.com/subpod/subpod/pkg/workload"
)

// seen is what there is of a pod, as far as a decision depends on it.
type seen struct {
	ready    bool      // its sandbox holds containers
	rebooted bool      // the user has last stopped it in an earlier node
	retry    time.Time // when a failed Rebuild may be tried again
	// containers by name; one that was never made is missing.
	containers map[string]container
}

// container is what there is of a container.
type container struct {
	state    containerState
	code     int32
	started  time.Time
	finished time.Time
	up       bool      // hooks and startup probe have succeeded
	retry    time.Time // when a failed try to make it may be repeated
	failed   error     // that try
}

type containerState int

const (
	absent containerState = iota
	created
	running
	exited
)

// action is one step that brings a pod nearer to what it should be.
type action int

const (
	wait    action = iota // for an event, or the time of the decision
	end                   // nothing is left to do before its user does something
	resume                // restart what the user had stopped, in a new node
	rebuild               // the pod sandbox
	start                 // or restart the container
	finish                // stop the pod; it is done
	stopped               // record that its user has stopped all of it
	tidy                  // stop the pod of which that, or its end, is recorded
)

// decision is what is to be done next, and when to decide again if nothing happens.
type decision struct {
	action    action
	container *workload.Container
	at        time.Time // zero for never
	failed    bool      // of finish
	reason    string
}

// verdict is how a container stands.
type verdict int

const (
	due       verdict = iota // to be started now
	later                    // to be started at a time
	alive                    // it runs, and is not up yet
	up                       // it runs
	completed                // it has ended well, for good
	failed                   // it has ended badly, for good
	halted                   // its user has stopped it
)

// decide returns the next step. It is a pure function: all that it knows is in its
// arguments.
//
//	          ┌────────── a container has exited: backoff ─────────┐
//	          ▼                                                    │
//	rebuild ─▶ inits, one after the other, and sidecars ─▶ mains ──┤
//	   ▲                                                           ├─▶ finish: Done
//	   └── the sandbox is lost, or of an earlier node ─────────────┤
//	                                                               └─▶ Stopped, by the user
func decide(spec *workload.Spec, st workload.Status, s seen, now time.Time) decision {
	switch {
	case s.ready && (st.Done || st.Stopped && halts(spec, st)):
		return decision{action: tidy} // the server has died before it did so
	case st.Done:
		return decision{action: end}
	case s.rebooted && stoppedAlways(spec, st):
		return decision{action: resume}
	case st.Stopped:
		return decision{action: end}
	case st.Restarting:
		return decision{action: wait} // for RestartPod
	}
	var deadline time.Time
	if spec.Deadline > 0 {
		deadline = st.StartedAt.Add(spec.Deadline)
		if !now.Before(deadline) {
			return decision{action: finish, failed: true, reason: "it has exceeded its activeDeadlineSeconds"}
		}
	}
	d := next(spec, st, s, now)
	if d.action == wait && !deadline.IsZero() && (d.at.IsZero() || deadline.Before(d.at)) {
		d.at = deadline
	}
	return d
}

// stoppedAlways reports whether the user has stopped containers with the policy Always,
// which a new node starts again, as Docker does.
func stoppedAlways(spec *workload.Spec, st workload.Status) bool {
	for _, c := range spec.Containers {
		if c.Restart.Name == workload.Always && (st.Stopped && st.Containers[c.Name].Ran || st.Containers[c.Name].Stopped) {
			return true
		}
	}
	return false
}

// halts reports whether the user has stopped each main of its own.
func halts(spec *workload.Spec, st workload.Status) bool {
	for _, c := range spec.Containers {
		if c.Role == workload.Main && !st.Containers[c.Name].Stopped {
			return false
		}
	}
	return true
}

// next is decide for a pod that is to run.
func next(spec *workload.Spec, st workload.Status, s seen, now time.Time) decision {
	if d, over := outcome(spec, st, s, now); over {
		return d
	}
	if !s.ready {
		if now.Before(s.retry) {
			return decision{action: wait, at: s.retry}
		}
		return decision{action: rebuild}
	}
	var at time.Time
	earliest := func(t time.Time) {
		if at.IsZero() || t.Before(at) {
			at = t
		}
	}
	hold := false // an init or sidecar before the others is not that far
	for i := range spec.Containers {
		c := &spec.Containers[i]
		if hold && st.Containers[c.Name].Generation != st.Generation || hold && !st.Containers[c.Name].Ran {
			continue
		}
		v, t := judge(spec, c, st, s, now)
		switch v {
		case due:
			return decision{action: start, container: c}
		case later:
			earliest(t)
		case failed:
			if c.Role == workload.Init {
				return decision{action: finish, failed: true, reason: why(c, s.containers[c.Name])}
			}
		}
		if c.Role == workload.Init && v != completed || c.Role == workload.Sidecar && v != up && v != halted {
			hold = true
		}
	}
	return decision{action: wait, at: at}
}

// outcome returns how the pod ends, if all its mains have ended for good.
func outcome(spec *workload.Spec, st workload.Status, s seen, now time.Time) (decision, bool) {
	d := decision{action: finish}
	halts := false
	for i := range spec.Containers {
		c := &spec.Containers[i]
		if c.Role != workload.Main {
			continue
		}
		v, _ := judge(spec, c, st, s, now)
		switch v {
		case completed:
		case failed:
			if d.reason != "" {
				d.reason += "; "
			}
			d.failed, d.reason = true, d.reason+why(c, s.containers[c.Name])
		case halted:
			halts = true
		default:
			return decision{}, false
		}
	}
	if halts {
		d = decision{action: stopped}
	}
	return d, true
}

func why(c *workload.Container, x container) string {
	if x.failed != nil && x.state != exited {
		return fmt.Sprintf("%s: %v", c.Name, x.failed)
	}
	return fmt.Sprintf("%s exited with code %d", c.Name, x.code)
}

// judge returns how a container stands; for later, when it is due.
func judge(spec *workload.Spec, c *workload.Container, st workload.Status, s seen, now time.Time) (verdict, time.Time) {
	p, x := st.Containers[c.Name], s.containers[c.Name]
	switch x.state {
	case running:
		if x.up {
			return up, time.Time{}
		}
		return alive, time.Time{}
	case created, absent:
		switch {
		case p.Stopped:
			return halted, time.Time{}
		case x.failed != nil && c.Restart.Name == workload.No:
			return failed, time.Time{}
		}
		return notBefore(x.retry, now)
	}
	if p.Stopped {
		return halted, time.Time{}
	}
	if !p.Ran || c.Role != workload.Main && p.Generation != st.Generation {
		return notBefore(x.retry, now) // of a sandbox before this one
	}
	switch c.Restart.Name {
	case workload.No:
		return ended(x), time.Time{}
	case workload.OnFailure:
		if x.code == 0 || c.Restart.Max > 0 && p.Restarts >= c.Restart.Max {
			return ended(x), time.Time{}
		}
	}
	at := x.retry
	// An exit in the future: the clock was set back, and says nothing about a pause.
	if !x.finished.After(now) && p.Generation == st.Generation {
		if after := x.finished.Add(spec.Backoff.Delay(failuresOf(spec, p, x))); at.Before(after) {
			at = after
		}
	}
	return notBefore(at, now)
}

func notBefore(at, now time.Time) (verdict, time.Time) {
	if now.Before(at) {
		return later, at
	}
	return due, time.Time{}
}

func ended(x container) verdict {
	if x.code == 0 {
		return completed
	}
	return failed
}

// failuresOf returns the failures in a row before this exit.
func failuresOf(spec *workload.Spec, p workload.Progress, x container) uint32 {
	if !x.started.IsZero() && x.finished.Sub(x.started) >= spec.Backoff.Reset {
		return 0
	}
	return p.Failures
}

// restarted returns the progress of a container that is started now.
func restarted(spec *workload.Spec, p workload.Progress, x container, generation uint32) workload.Progress {
	if x.state == exited && p.Ran {
		p.Failures = failuresOf(spec, p, x) + 1
		p.Restarts++
	}
	p.Ran, p.Generation = true, generation
	return p
}
