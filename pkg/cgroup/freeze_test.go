package cgroup

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestFreeze: the end of it is what the kernel says, not what was asked for.
func TestFreeze(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("cgroup.freeze", "0\n")
	write("cgroup.events", "populated 1\nfrozen 0\n")
	d := Delegation{Driver: DriverCgroupfs}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- d.Freeze(ctx, dir, true) }()
	for deadline := time.Now().Add(time.Minute); !d.Frozen(dir); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("cgroup.freeze is not written")
		}
	}
	select {
	case err := <-done:
		t.Errorf("it returns (%v) while a process still runs", err)
	case <-time.After(4 * freezePoll):
	}
	write("cgroup.events", "populated 1\nfrozen 1\n")
	if err := <-done; err != nil {
		t.Error(err)
	}
	go func() { done <- d.Freeze(ctx, dir, false) }()
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("%v; want that it has not thawed", err)
	}
	if d.Frozen(dir) {
		t.Error("it is still to be frozen")
	}
}

func TestNoFreezer(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "missing")
	for name, c := range map[string]struct {
		d   Delegation
		dir string
	}{
		"not delegated": {Delegation{Driver: DriverDisabled, Reason: "none"}, missing},
		"no cgroup":     {Delegation{Driver: DriverCgroupfs}, ""},
		"gone":          {Delegation{Driver: DriverCgroupfs}, missing},
	} {
		if err := c.d.Freeze(context.Background(), c.dir, true); !errors.Is(err, ErrNoFreezer) {
			t.Errorf("%s: %v", name, err)
		}
		if c.d.Frozen(c.dir) {
			t.Errorf("%s: frozen", name)
		}
	}
}
