package health_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/subpod/subpod/pkg/api"
	"github.com/subpod/subpod/pkg/health"
)

// TestFollowNextRun: the run that a failed check has brought about has a state of its own,
// also once the one before it is given up.
func TestFollowNextRun(t *testing.T) {
	m := health.New(func(context.Context, string, []string, time.Duration) (int32, []byte, error) { return 1, nil, nil })
	h := api.Health{Command: []string{"x"}, Interval: time.Millisecond, Retries: 1, StartPeriod: time.Hour}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	next := make(chan struct{})
	first, end := context.WithCancel(ctx)
	m.Follow(first, "c", h, func() time.Time { return time.Now().Add(-2 * time.Hour) }, func() {
		go func() {
			defer close(next)
			m.Follow(ctx, "c", h, time.Now, func() { t.Error("unhealthy in its start period") })
		}()
		for s, _ := m.Of("c"); s.Status != health.Starting; s, _ = m.Of("c") {
			time.Sleep(time.Millisecond)
		}
		end()
	})
	if s, ok := m.Of("c"); !ok || s.Status != health.Starting {
		t.Errorf("%+v, %v", s, ok)
	}
	time.Sleep(20 * time.Millisecond) // a few checks
	cancel()
	<-next
}

// TestFollow: a container is starting, then healthy, unhealthy after as many failures as
// it may have, which is said once, and healthy again.
func TestFollow(t *testing.T) {
	type result struct {
		code int32
		err  error
	}
	results := make(chan result)
	m := health.New(func(context.Context, string, []string, time.Duration) (int32, []byte, error) {
		r := <-results
		return r.code, []byte("said"), r.err
	})
	failed := make(chan struct{}, 10)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		m.Follow(ctx, "c", api.Health{Command: []string{"x"}, Interval: time.Millisecond, Retries: 2}, func() time.Time { return time.Now() },
			func() { failed <- struct{}{} })
	}()
	for i, step := range []struct {
		result result
		want   string
		failed int
	}{
		{result{code: 1}, health.Starting, 0}, {result{code: 0}, health.Healthy, 0}, {result{code: 1}, health.Healthy, 0},
		{result{err: errors.New("no")}, health.Unhealthy, 1}, {result{code: 1}, health.Unhealthy, 1}, {result{code: 0}, health.Healthy, 1},
	} {
		results <- step.result
		deadline := time.Now().Add(time.Minute)
		for {
			s, ok := m.Of("c")
			if ok && s.Status == step.want && s.ExitCode == step.result.code && len(failed) == step.failed {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("step %d: %+v, %d failures, want %s", i, s, len(failed), step.want)
			}
			time.Sleep(time.Millisecond)
		}
	}
	cancel()
	close(results)
	<-done
	if _, ok := m.Of("c"); ok {
		t.Error("the state outlives the container")
	}
}

// TestRestarted: who restarts a container because it is unhealthy does not take away what is
// known of its next run: that starts, and its first checks do not count yet.
func TestRestarted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := health.New(func(context.Context, string, []string, time.Duration) (int32, []byte, error) { return 1, nil, nil })
		h := api.Health{Command: []string{"x"}, Interval: time.Second, Retries: 1}
		start := func() time.Time { return time.Now() }
		first, end := context.WithCancel(t.Context())
		second, endSecond := context.WithCancel(t.Context())
		var runs sync.WaitGroup
		runs.Go(func() {
			m.Follow(first, "c", h, start, func() {
				end()
				runs.Go(func() {
					late := h
					late.StartPeriod = time.Hour
					m.Follow(second, "c", late, start, func() { t.Error("unhealthy while it starts") })
				})
				synctest.Wait()
			})
		})
		time.Sleep(10 * time.Second)
		if s, ok := m.Of("c"); !ok || s.Status != health.Starting {
			t.Errorf("after the restart: %+v, %v", s, ok)
		}
		endSecond()
		runs.Wait()
	})
}
