package pod

import (
	"context"
	"errors"
	"testing"
	"time"
)

func TestSharedHoldersKeepTheLoneOneOut(t *testing.T) {
	l := newLocks()
	ctx := context.Background()
	one, err := l.share(ctx, "a")
	if err != nil {
		t.Fatal(err)
	}
	two, err := l.share(ctx, "a")
	if err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
	defer cancel()
	if _, err := l.alone(short, "a"); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("alone beside sharers: %v, want the context's error", err)
	}
	if release, err := l.alone(ctx, "b"); err != nil {
		t.Fatalf("another ID: %v", err)
	} else {
		release()
	}
	one()
	two()
	release, err := l.alone(ctx, "a")
	if err != nil {
		t.Fatal(err)
	}
	release()
	if len(l.m) != 0 {
		t.Errorf("%d locks left behind", len(l.m))
	}
}

func TestARetryFindsWhatTheFirstRequestMade(t *testing.T) {
	n := newNames()
	ctx := context.Background()
	_, settle, err := n.claim(ctx, "web", "id1")
	if err != nil || settle == nil {
		t.Fatalf("first claim: %v", err)
	}
	type answer struct {
		id     string
		settle func(bool)
	}
	retry := make(chan answer)
	go func() {
		id, settle, _ := n.claim(ctx, "web", "id2")
		retry <- answer{id, settle}
	}()
	select {
	case a := <-retry:
		t.Fatalf("the retry did not wait: %+v", a)
	case <-time.After(10 * time.Millisecond):
	}
	settle(true)
	if a := <-retry; a.id != "id1" || a.settle != nil {
		t.Errorf("the retry got %q, want id1 and nothing to settle", a.id)
	}
	n.free("web", "other")
	if id, _, _ := n.claim(ctx, "web", "id3"); id != "id1" {
		t.Errorf("freed by another: claim got %q, want id1", id)
	}
	n.free("web", "id1")
	if id, settle, _ := n.claim(ctx, "web", "id4"); id != "" || settle == nil {
		t.Errorf("after free: claim got %q, want the name", id)
	}
}

func TestARetryTakesOverFromAFailure(t *testing.T) {
	n := newNames()
	ctx := context.Background()
	_, settle, _ := n.claim(ctx, "web", "id1")
	got := make(chan bool)
	go func() {
		_, settle, _ := n.claim(ctx, "web", "id2")
		got <- settle != nil
	}()
	settle(false)
	if !<-got {
		t.Error("the name was not given to the retry")
	}
}
