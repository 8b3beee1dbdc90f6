package supervise

import (
	"context"
	"fmt"
	"sync"

	"github.com/containerd/errdefs"

	"github.com/subpod/subpod/pkg/state"
	"github.com/subpod/subpod/pkg/workload"
)

// Event is something that has happened to a pod.
type Event struct {
	Text string // one line
	// Up is that all containers have started and been ready once, or have ended well.
	Up bool
	// Final is that nothing more happens before the user does something: the pod was
	// Stopped or removed, has Failed, which Reason gives, or has succeeded.
	Final, Stopped, Failed bool
	Reason                 string
}

// feed keeps the last events of a pod for those who follow it.
type feed struct {
	mu      sync.Mutex
	events  []Event
	dropped int           // events that were before events[0]
	changed chan struct{} // closed and replaced by add
}

// maxEvents is how many events are kept for a pod.
const maxEvents = 256

func (f *feed) add(e Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.events = append(f.events, e)
	if n := len(f.events) - maxEvents; n > 0 {
		f.events = append([]Event(nil), f.events[n:]...)
		f.dropped += n
	}
	close(f.changed)
	f.changed = make(chan struct{})
}

// after returns the events from the number n on, the number of the next one, and what is
// closed when there is one.
func (f *feed) after(n int) ([]Event, int, <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n = max(n, f.dropped)
	return f.events[n-f.dropped:], f.dropped + len(f.events), f.changed
}

// Follow sends what happens to a pod, from the first event that is still known, until
// there is a final one. state.ErrNotFound.
func (s *Supervisor) Follow(ctx context.Context, podID string, send func(Event) error) error {
	next := 0
	for {
		s.mu.Lock()
		u := s.units[podID]
		s.mu.Unlock()
		if u == nil {
			p, err := s.Records.Pod(podID)
			if err != nil {
				return err
			}
			if p.Supervised() {
				return fmt.Errorf("%w: the server does not look after pod sandbox %s yet", errdefs.ErrUnavailable, podID)
			}
			return send(finalEvent(p))
		}
		events, n, changed := u.feed.after(next)
		for i, e := range events {
			// A final event that is not the last one is of an earlier run.
			if e.Final && i < len(events)-1 {
				continue
			}
			if err := send(e); err != nil || e.Final {
				return err
			}
		}
		if next = n; len(events) > 0 {
			continue
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		case <-s.ctx.Done():
			return s.ctx.Err()
		}
	}
}

// finalEvent says how a pod that is not supervised has ended.
func finalEvent(p state.Pod) Event {
	name, st := p.Config.V.GetMetadata().GetName(), p.Supervision
	switch {
	case !st.Done:
		return Event{Final: true, Stopped: true, Text: name + ": stopped"}
	case st.Failed:
		return Event{Final: true, Failed: true, Reason: st.Reason, Text: fmt.Sprintf("%s: failed: %s", name, st.Reason)}
	}
	return Event{Final: true, Text: name + ": succeeded"}
}

func (u *unit) say(format string, args ...any) {
	u.feed.add(Event{Text: fmt.Sprintf(format, args...)})
}

// report says how the pod has ended.
func (u *unit) report(p state.Pod) {
	if u.final {
		return
	}
	u.final, u.wasUp = true, false
	u.feed.add(finalEvent(p))
}

// reportExits says what has become of containers that have exited since the last time.
func (u *unit) reportExits(p state.Pod, s seen) {
	for i := range p.Workload.Containers {
		c := &p.Workload.Containers[i]
		x := s.containers[c.Name]
		if x.state != exited || x.finished.Equal(u.exits[c.Name]) {
			continue
		}
		if u.began {
			u.feed.add(Event{Text: u.exitText(p.Workload, c, p.Supervision, s)})
		}
		u.exits[c.Name] = x.finished
	}
	u.began = true
}

// reportUp says, once, that the whole pod is up.
func (u *unit) reportUp(p state.Pod, s seen) {
	u.final = false
	if u.wasUp {
		return
	}
	for i := range p.Workload.Containers {
		c := &p.Workload.Containers[i]
		if c.Role != workload.Main {
			continue
		}
		v, _ := judge(p.Workload, c, p.Supervision, s, u.now())
		w := u.watches[c.Name]
		ready := v == up && (c.Readiness == nil || w != nil && w.ready.Load())
		if !ready && v != completed {
			return
		}
	}
	u.wasUp = true
	u.feed.add(Event{Up: true})
}
