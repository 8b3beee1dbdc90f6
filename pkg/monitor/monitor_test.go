package monitor

import (
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/pkg/monitor/wire"
	"github.com/subpod/subpod/pkg/proc"
)

// TestExitOfTheRunBefore: the report of an end may be on its way while the container is
// dropped and made again under its ID.
func TestExitOfTheRunBefore(t *testing.T) {
	made, fds, err := newJournal()
	if err != nil {
		t.Fatal(err)
	}
	defer wire.CloseAll(fds)
	_ = unix.Munmap(made.mem)
	c := testMonitor(t, fds, filepath.Join(t.TempDir(), "log"))
	c.init = proc.ID{PID: 2, StartTime: 20}
	c.m.containers = map[string]*container{c.id: c}
	c.m.exited(c.id, proc.ID{PID: 1, StartTime: 10}, wire.Exit{Status: 1})
	select {
	case <-c.ended:
		t.Fatal("the container has ended with the one before it")
	case <-time.After(50 * time.Millisecond):
	}
	c.m.exited(c.id, c.init, wire.Exit{Status: 2})
	<-c.ended
	if c.exit.Status != 2 {
		t.Errorf("exit status %d", c.exit.Status)
	}
}
