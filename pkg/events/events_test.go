package events

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func event(i int) *Event {
	return &Event{ID: strconv.Itoa(i)}
}

func TestOrderAndIndependence(t *testing.T) {
	b := New(1000)
	early := b.Subscribe()
	b.Publish(event(0))
	late := b.Subscribe()
	for i := 1; i < 10; i++ {
		b.Publish(event(i))
	}
	ctx := context.Background()
	for first, s := range map[int]*Subscription{0: early, 1: late} {
		for i := first; i < 10; i++ {
			e, err := s.Next(ctx)
			if err != nil || e.ID != strconv.Itoa(i) {
				t.Fatalf("event %d: got %v, %v", i, e, err)
			}
		}
	}
	early.Close()
	early.Close()
	b.Publish(event(10))
	if e, err := early.Next(ctx); !errors.Is(err, ErrClosed) {
		t.Errorf("closed subscription: got %v, %v", e, err)
	}
	if e, err := late.Next(ctx); err != nil || e.ID != "10" {
		t.Errorf("got %v, %v", e, err)
	}
	b.Publish(event(11))
	b.Close()
	b.Close()
	b.Publish(event(12))
	if e, err := late.Next(ctx); err != nil || e.ID != "11" {
		t.Errorf("what was queued before Close: got %v, %v", e, err)
	}
	for range 2 {
		if e, err := late.Next(ctx); !errors.Is(err, ErrClosed) {
			t.Errorf("after Close: got %v, %v", e, err)
		}
	}
	if e, err := b.Subscribe().Next(ctx); !errors.Is(err, ErrClosed) {
		t.Errorf("subscribed after Close: got %v, %v", e, err)
	}
}

// TestSlowSubscriber: the producer never waits, the slow one is told, the fast
// one misses nothing.
func TestSlowSubscriber(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := New(8)
		slow, fast := b.Subscribe(), b.Subscribe()
		got := make(chan int)
		go func() {
			n := 0
			for {
				e, err := fast.Next(t.Context())
				if errors.Is(err, ErrClosed) {
					break
				}
				if err != nil || e.ID != strconv.Itoa(n) {
					t.Errorf("event %d: got %v, %v", n, e, err)
				}
				n++
			}
			got <- n
		}()
		for i := range 100 {
			b.Publish(event(i)) // would be a deadlock, which synctest reports
			synctest.Wait()
		}
		b.Close()
		if n := <-got; n != 100 {
			t.Errorf("the fast subscriber got %d of 100", n)
		}
		for i := range 8 {
			if e, err := slow.Next(t.Context()); err != nil || e.ID != strconv.Itoa(i) {
				t.Fatalf("queued event %d: got %v, %v", i, e, err)
			}
		}
		if e, err := slow.Next(t.Context()); !errors.Is(err, ErrSlow) {
			t.Errorf("got %v, %v, want ErrSlow", e, err)
		}
	})
}

func TestNextEndsWithContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(1).Subscribe()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := s.Next(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	})
}

// TestConcurrent is for the race detector, and for a close of a closed channel.
func TestConcurrent(t *testing.T) {
	b := New(4)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := range 200 {
				b.Publish(event(i))
			}
		})
		wg.Go(func() {
			for range 50 {
				s := b.Subscribe()
				_, _ = s.Next(context.Background())
				s.Close()
			}
		})
	}
	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	for {
		select {
		case <-done:
			b.mu.Lock()
			defer b.mu.Unlock()
			if len(b.subs) != 0 {
				t.Errorf("%d subscriptions left", len(b.subs))
			}
			return
		case <-time.After(10 * time.Millisecond):
			b.Publish(event(0)) // wakes a subscriber that came last
		}
	}
}
