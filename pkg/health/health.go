// Package health runs the health checks of containers and knows how they went. What is
// known is in memory: a server that begins knows each container as starting.
package health

import (
	"context"
	"sync"
	"time"

	"github.com/subpod/subpod/pkg/api"
)

// Statuses of a container with a check.
const (
	Starting  = "starting"
	Healthy   = "healthy"
	Unhealthy = "unhealthy"
)

// Defaults of a check that does not say.
const (
	defaultInterval = 30 * time.Second
	defaultTimeout  = 30 * time.Second
	defaultRetries  = 3
	maxOutput       = 4096 // bytes of a check's output that are kept
)

// State is how the checks of a container went.
type State struct {
	Status string `json:"status"`
	// Failing is how many checks in a row have failed.
	Failing int `json:"failingStreak"`
	// ExitCode and Output are those of the last check.
	ExitCode int32     `json:"exitCode"`
	Output   string    `json:"output"`
	Checked  time.Time `json:"checked"`
}

// Exec runs a command in a container. An error is a failed check, too.
type Exec func(ctx context.Context, id string, command []string, timeout time.Duration) (code int32, output []byte, err error)

// Monitor checks containers. Its methods may be called concurrently.
type Monitor struct {
	Exec Exec

	mu     sync.Mutex
	states map[string]*State // of the present run, by container ID
}

// New returns a Monitor.
func New(exec Exec) *Monitor { return &Monitor{Exec: exec, states: map[string]*State{}} }

// Of returns the state of a container; ok is false where it has no check.
func (m *Monitor) Of(id string) (s State, ok bool) {
	if m == nil {
		return s, false
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if now := m.states[id]; now != nil {
		return *now, true
	}
	return s, false
}

// begin returns the state of a run that begins, and what ends it: by then the container may
// run again, with another state.
func (m *Monitor) begin(id string) (own *State, end func()) {
	own = &State{Status: Starting}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.states[id] = own
	return own, func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.states[id] == own {
			delete(m.states, id)
		}
	}
}

// Follow checks one run of a container until ctx ends, from when started returns the time of its
// start. It calls failed, once, when the container becomes unhealthy, and again only after
// it was healthy in between.
func (m *Monitor) Follow(ctx context.Context, id string, h api.Health, started func() time.Time, failed func()) {
	own, end := m.begin(id)
	defer end()
	h = withDefaults(h)
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(h.Interval):
		}
		since := started()
		if since.IsZero() {
			continue
		}
		before := *own // which only this changes
		next := m.check(ctx, id, h, before, since)
		if ctx.Err() != nil {
			return
		}
		m.mu.Lock()
		*own = next
		m.mu.Unlock()
		if next.Status == Unhealthy && before.Status != Unhealthy {
			failed()
		}
	}
}

// check runs one check and returns the state after it.
func (m *Monitor) check(ctx context.Context, id string, h api.Health, s State, since time.Time) State {
	code, out, err := m.Exec(ctx, id, h.Command, h.Timeout)
	s.ExitCode, s.Output, s.Checked = code, string(out[:min(len(out), maxOutput)]), time.Now()
	if err != nil {
		s.Output = err.Error()
	}
	switch {
	case err == nil && code == 0:
		s.Status, s.Failing = Healthy, 0
	case s.Status == Starting && time.Since(since) < h.StartPeriod:
		// It does not count yet.
	default:
		if s.Failing++; s.Failing >= h.Retries {
			s.Status = Unhealthy
		}
	}
	return s
}

func withDefaults(h api.Health) api.Health {
	if h.Interval <= 0 {
		h.Interval = defaultInterval
	}
	if h.Timeout <= 0 {
		h.Timeout = defaultTimeout
	}
	if h.Retries <= 0 {
		h.Retries = defaultRetries
	}
	return h
}
