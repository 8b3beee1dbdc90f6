// Package trace records where the time of a request goes: a tree of steps with their
// times, in the server's memory, as OpenTelemetry's spans. What carries no trace in its
// context costs a look at the context.
//
//	ctx, step := trace.Start(ctx, "network")
//	err := setUp(ctx)
//	step.End(err)
//
// Names of steps are constants, and attributes names and IDs: no command line, variable or
// credential gets into a trace.
package trace

import (
	"context"
	"sync"
	"time"
)

const (
	// maxSteps bounds a trace; what is beyond is counted in Trace.Dropped.
	maxSteps = 128
	// maxText bounds an attribute and an error, in bytes.
	maxText = 300
)

// Step is one step of a request, or the request itself. A nil one is that of a request
// without a trace.
type Step struct {
	a     *active
	index int // in a.steps, -1 for the request
}

// active is a trace whose request has not ended.
type active struct {
	recorder *Recorder
	start    time.Time // with the monotonic clock

	mu    sync.Mutex
	trace Trace
	ended bool
}

type stepKey struct{}

// Begin starts the trace of a request. remote is who has sent it, where that has a trace of
// its own. The returned step must be ended by Recorder.End.
func (r *Recorder) Begin(ctx context.Context, name string, remote Remote) (context.Context, *Step) {
	if r == nil {
		return ctx, nil
	}
	now := time.Now()
	a := &active{recorder: r, start: now}
	a.trace = Trace{Name: name, Start: now, TraceID: remote.TraceID, Parent: remote.SpanID, SpanID: newSpanID()}
	if a.trace.TraceID == (ID{}) {
		a.trace.TraceID = newID()
	}
	s := &Step{a: a, index: -1}
	return context.WithValue(ctx, stepKey{}, s), s
}

// Start begins a step of the request whose context this is. Steps that begin with the
// returned context are its steps.
func Start(ctx context.Context, name string) (context.Context, *Step) {
	above, _ := ctx.Value(stepKey{}).(*Step)
	if above == nil {
		return ctx, nil
	}
	s := above.a.begin(name, above.index)
	if s == nil {
		return ctx, nil
	}
	return context.WithValue(ctx, stepKey{}, s), s
}

// Do runs a step that has no steps of its own.
func Do(ctx context.Context, name string, run func() error) error {
	_, step := Start(ctx, name)
	err := run()
	step.End(err)
	return err
}

// Set adds an attribute to the request whose context this is: an ID, or a name.
func Set(ctx context.Context, key, value string) {
	s, _ := ctx.Value(stepKey{}).(*Step)
	if s == nil || value == "" {
		return
	}
	s.a.mu.Lock()
	defer s.a.mu.Unlock()
	if s.a.ended {
		return
	}
	if s.a.trace.Attributes == nil {
		s.a.trace.Attributes = map[string]string{}
	}
	if len(s.a.trace.Attributes) < 8 {
		s.a.trace.Attributes[key] = cut(value)
	}
}

func (a *active) begin(name string, parent int) *Step {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ended {
		return nil
	}
	if len(a.trace.Steps) >= maxSteps {
		a.trace.Dropped++
		return nil
	}
	a.trace.Steps = append(a.trace.Steps, StepTime{Name: name, Parent: parent, Start: time.Since(a.start), Took: unended})
	return &Step{a: a, index: len(a.trace.Steps) - 1}
}

// unended is the duration of a step while it goes on.
const unended = -1

// End ends a step; an error marks it as failed. Idempotent; nil is fine.
func (s *Step) End(err error) {
	if s == nil || s.index < 0 {
		return
	}
	a := s.a
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ended {
		return // with its request, which did not wait for it
	}
	if t := &a.trace.Steps[s.index]; t.Took == unended {
		t.Took, t.Failed = time.Since(a.start)-t.Start, err != nil
	}
}

// end ends the trace and returns it: nothing changes it from then on.
func (s *Step) end(code, text string) *Trace {
	a := s.a
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ended {
		return nil
	}
	a.ended = true
	t := &a.trace
	t.Took, t.Code, t.Error = time.Since(a.start), code, cut(text)
	for i := range t.Steps {
		if t.Steps[i].Took == unended {
			t.Steps[i].Took, t.Steps[i].Unended = t.Took-t.Steps[i].Start, true
		}
	}
	return t
}

func cut(s string) string {
	if len(s) > maxText {
		return s[:maxText] + "…"
	}
	return s
}
