package rootless

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/subpod/subpod/pkg/proc"
	"golang.org/x/sys/unix"
)

// ErrDegraded is returned by Reload when the new server serves, but not with the
// configuration that is on disk. The text says why.
var ErrDegraded = errors.New("the new server is degraded")

// ErrNotReady is returned by Reload when no new server serves in time.
var ErrNotReady = errors.New("the new server does not serve yet")

// readyInterval is the pause between two looks for a server that serves.
const readyInterval = 10 * time.Millisecond

// Reload restarts the server, which takes a new binary and a new configuration on
// disk into use; containers keep running. It waits until the new server serves, or
// until ctx ends.
//
// ErrNoNode when no node runs; ErrDegraded and ErrNotReady.
func Reload(ctx context.Context, runDir string) error {
	n, err := Load(runDir)
	if err != nil {
		return err
	}
	before := readyTime(runDir)
	// The first process forwards it to the supervisor.
	id := proc.ID{PID: n.ChildPID, StartTime: n.init.StartTime}
	if err := id.Signal(unix.SIGHUP); err != nil {
		return fmt.Errorf("ask the node for a new server: %w", err)
	}
	for readyTime(runDir).Equal(before) {
		if !id.Alive() {
			return fmt.Errorf("%w any more: it has ended while the server was being replaced", ErrNoNode)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: the daemon goes on trying, its log says why; containers keep running", ErrNotReady)
		case <-time.After(readyInterval):
		}
	}
	if reason := n.Degraded(); reason != "" {
		return fmt.Errorf("%w: %s", ErrDegraded, reason)
	}
	return nil
}
