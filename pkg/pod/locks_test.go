package pod

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"github.com/subpod/subpod/pkg/state"
)

func TestSharedHoldersKeepAnExclusiveOneOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLocks()
		ctx := t.Context()
		_, one, err := l.acquire(ctx, "a", shared)
		if err != nil {
			t.Fatal(err)
		}
		_, two, err := l.acquire(ctx, "a", shared)
		if err != nil {
			t.Fatal(err)
		}
		short, cancel := context.WithCancel(ctx)
		got := make(chan error, 1)
		go func() {
			_, _, err := l.acquire(short, "a", exclusive)
			got <- err
		}()
		synctest.Wait()
		cancel()
		if err := <-got; !errors.Is(err, context.Canceled) {
			t.Fatalf("exclusive beside shared holders: %v, want the context's error", err)
		}
		if _, unlock, err := l.acquire(ctx, "b", exclusive); err != nil {
			t.Fatalf("another ID: %v", err)
		} else {
			unlock()
		}
		one()
		two()
		_, unlock, err := l.acquire(ctx, "a", exclusive)
		if err != nil {
			t.Fatal(err)
		}
		unlock()
		if len(l.m) != 0 {
			t.Errorf("%d locks left behind", len(l.m))
		}
	})
}

// TestInterrupt: who holds the lock, or gets it first, learns that another request
// wants it.
func TestInterrupt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newLocks()
		first, unlockFirst, err := l.acquire(t.Context(), "a", exclusive)
		if err != nil {
			t.Fatal(err)
		}
		second := make(chan context.Context)
		release := make(chan struct{})
		go func() {
			held, unlock, err := l.acquire(context.Background(), "a", shared)
			if err != nil {
				t.Error(err)
			}
			second <- held
			<-release
			unlock()
		}()
		synctest.Wait()
		third := make(chan error, 1)
		go func() {
			held, unlock, err := l.acquire(context.Background(), "a", interrupt)
			if err != nil {
				t.Error(err)
			}
			third <- held.Err()
			unlock()
		}()
		synctest.Wait()
		if context.Cause(first) != errInterrupted {
			t.Errorf("the holder's context: %v", context.Cause(first))
		}
		unlockFirst()
		if held := <-second; context.Cause(held) != errInterrupted {
			t.Errorf("the context of one that waited longer: %v", context.Cause(held))
		}
		close(release)
		if err := <-third; err != nil {
			t.Errorf("the context of the one that interrupts: %v", err)
		}
		synctest.Wait()
		if len(l.m) != 0 {
			t.Errorf("%d locks left behind", len(l.m))
		}
	})
}

// namesOf returns names over records that are kept in a map.
func namesOf(records map[string]string) *names[string] {
	return newNames(func(id string) (string, error) {
		if r, ok := records[id]; ok {
			return r, nil
		}
		return "", state.ErrNotFound
	}, func(id string) error {
		delete(records, id)
		return nil
	})
}

func TestARetryFindsWhatTheFirstRequestMade(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		records := map[string]string{"id1": "record 1"}
		n := namesOf(records)
		ctx := t.Context()
		if existing, err := n.claim(ctx, "web", "id1"); err != nil || existing != nil {
			t.Fatalf("first claim: %v, %v", existing, err)
		}
		retry := make(chan *string, 1)
		go func() {
			existing, err := n.claim(ctx, "web", "id2")
			if err != nil {
				t.Error(err)
			}
			retry <- existing
		}()
		synctest.Wait()
		if len(retry) > 0 {
			t.Fatal("the retry did not wait")
		}
		n.commit("web", "id1")
		if existing := <-retry; existing == nil || *existing != "record 1" {
			t.Errorf("the retry got %v, want the record", existing)
		}
		n.abort("web", "other")
		if existing, _ := n.claim(ctx, "web", "id3"); existing == nil {
			t.Error("the name was freed by an object that does not have it")
		}
		if err := n.release("web", "id1"); err != nil || len(records) > 0 {
			t.Errorf("release: %v, records %v", err, records)
		}
		if existing, _ := n.claim(ctx, "web", "id4"); existing != nil {
			t.Error("the name was not free after release")
		}
	})
}

func TestARetryTakesOverFromAFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := namesOf(map[string]string{})
		ctx := t.Context()
		if _, err := n.claim(ctx, "web", "id1"); err != nil {
			t.Fatal(err)
		}
		got := make(chan *string, 1)
		go func() {
			existing, _ := n.claim(ctx, "web", "id2")
			got <- existing
		}()
		synctest.Wait()
		n.abort("web", "id1")
		if existing := <-got; existing != nil {
			t.Errorf("the name was not given to the retry: %v", *existing)
		}
	})
}

// TestARecordThatCannotBeDeletedKeepsItsName, so that the two stay one truth.
func TestARecordThatCannotBeDeletedKeepsItsName(t *testing.T) {
	full := errors.New("no space left")
	n := newNames(func(string) (string, error) { return "record", nil }, func(string) error { return full })
	if _, err := n.claim(t.Context(), "web", "id1"); err != nil {
		t.Fatal(err)
	}
	if err := n.release("web", "id1"); !errors.Is(err, full) {
		t.Errorf("release: %v", err)
	}
	if existing, err := n.claim(t.Context(), "web", "id2"); err != nil || existing == nil {
		t.Errorf("claim: %v, %v, want the record", existing, err)
	}
}
