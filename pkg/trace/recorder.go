package trace

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"
)

const (
	// maxRecent and maxRecentSteps bound the traces that are kept: some 400 KiB.
	maxRecent      = 512
	maxRecentSteps = 4096
	// maxSlowest traces of the last slowestAge are kept when others have taken their place
	// among the recent ones.
	maxSlowest = 16
	slowestAge = time.Hour
	// worthKeeping is what a request without steps or an error must have taken: a kubelet
	// asks for lists and statuses all the time.
	worthKeeping = 20 * time.Millisecond
	// queue is how many traces a follower may be behind.
	queue = 64
)

// Recorder keeps the traces of requests that have ended: the last ones, and the slowest of
// late. Its methods may be called concurrently. A nil one keeps nothing.
type Recorder struct {
	// Ended, unless it is nil, is called with each step of a request that has ended.
	Ended func(step string, took time.Duration)

	mu        sync.Mutex
	recent    []*Trace // oldest first
	steps     int      // of recent
	slowest   []*Trace // slowest first
	followers map[chan *Trace]struct{}
	closed    bool
}

// End ends the trace of a request, with the code and the error of its answer.
func (r *Recorder) End(s *Step, code, text string) {
	if r == nil || s == nil {
		return
	}
	t := s.end(code, text)
	if t == nil {
		return
	}
	if r.Ended != nil {
		for _, step := range t.Steps {
			r.Ended(step.Name, step.Took)
		}
	}
	if len(t.Steps) == 0 && t.Error == "" && t.Took < worthKeeping {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.keep(t)
	for f := range r.followers {
		select {
		case f <- t:
		default: // it is too slow: it misses some
		}
	}
}

// Finish ends the trace of the request whose context this is, before the request ends: what
// follows is no work of the server's. A later end counts for nothing.
func Finish(ctx context.Context, code, text string) {
	if s, _ := ctx.Value(stepKey{}).(*Step); s != nil {
		s.a.recorder.End(s, code, text)
	}
}

func (r *Recorder) keep(t *Trace) {
	r.recent = append(r.recent, t)
	r.steps += len(t.Steps)
	drop := 0
	for len(r.recent)-drop > maxRecent || r.steps > maxRecentSteps {
		r.steps -= len(r.recent[drop].Steps)
		drop++
	}
	if drop > 0 {
		r.recent = slices.Delete(r.recent, 0, drop)
	}
	old := time.Now().Add(-slowestAge)
	r.slowest = slices.DeleteFunc(r.slowest, func(s *Trace) bool { return s.Start.Before(old) })
	if len(r.slowest) == maxSlowest && r.slowest[maxSlowest-1].Took >= t.Took {
		return
	}
	at, _ := slices.BinarySearchFunc(r.slowest, t, bySlowness)
	r.slowest = slices.Insert(r.slowest, at, t)
	r.slowest = r.slowest[:min(len(r.slowest), maxSlowest)]
}

func bySlowness(a, b *Trace) int { return cmp.Compare(b.Took, a.Took) }

// Recent returns the last n requests that match, oldest first.
func (r *Recorder) Recent(n int, match func(*Trace) bool) []*Trace {
	if r == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []*Trace
	for _, t := range slices.Backward(r.recent) {
		if len(out) == n {
			break
		}
		if match(t) {
			out = append(out, t)
		}
	}
	slices.Reverse(out)
	return out
}

// Slowest returns the n slowest requests of late that match, slowest first.
func (r *Recorder) Slowest(n int, match func(*Trace) bool) []*Trace {
	if r == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []*Trace
	for _, t := range slices.Concat(r.slowest, r.recent) {
		if match(t) && !slices.Contains(out, t) {
			out = append(out, t)
		}
	}
	slices.SortStableFunc(out, bySlowness)
	return out[:min(n, len(out))]
}

// Follow returns a channel of the requests that end from now on. A follower that does not
// receive misses some. Close closes the channel. stop must be called once.
func (r *Recorder) Follow() (traces <-chan *Trace, stop func()) {
	if r == nil {
		return nil, func() {}
	}
	c := make(chan *Trace, queue)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		close(c)
		return c, func() {}
	}
	if r.followers == nil {
		r.followers = map[chan *Trace]struct{}{}
	}
	r.followers[c] = struct{}{}
	return c, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.followers, c)
	}
}

// Close ends what follows, which has no end of its own. Idempotent.
func (r *Recorder) Close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	for f := range r.followers {
		close(f)
	}
	clear(r.followers)
}
