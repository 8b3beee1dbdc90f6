package oci

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// ReopenLog makes conmon go on in a new file at the container's log path and
// returns when that file is there. It does nothing while the log at that path
// still is the one written to: conmon would replace it and lose what it holds.
// ErrNotRunning when no conmon lives; a container without a log has nothing to
// reopen.
func (e *Executor) ReopenLog(ctx context.Context, id string, c Container) error {
	if c.LogPath == "" {
		return nil
	}
	if !c.Conmon.Alive() {
		return fmt.Errorf("reopen log of container %s: %w", id, ErrNotRunning)
	}
	open, err := c.logIsOpen()
	if err != nil || open {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for try := 0; ; try++ {
		// conmon 2.1 handles only the first line of what it reads at once, so
		// that a resize at the same time can swallow ours: ask again.
		if try%100 == 0 {
			if err := control(c, "2 0 0\n"); err != nil {
				return fmt.Errorf("reopen log of container %s: %w", id, err)
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("reopen log %s: conmon did not make a new file: %w", c.LogPath, ctx.Err())
		case <-time.After(time.Millisecond):
		}
		if open, err := c.logIsOpen(); err != nil || open {
			return err
		}
		if !c.Conmon.Alive() {
			return fmt.Errorf("reopen log of container %s: %w", id, ErrNotRunning)
		}
	}
}

// logIsOpen reports whether the file at the log path is one that conmon has
// open.
func (c Container) logIsOpen() (bool, error) {
	var log, st unix.Stat_t
	if err := unix.Stat(c.LogPath, &log); err != nil {
		if err == unix.ENOENT {
			return false, nil
		}
		return false, fmt.Errorf("stat %s: %w", c.LogPath, err)
	}
	fds := fmt.Sprintf("/proc/%d/fd", c.Conmon.PID)
	names, err := os.ReadDir(fds)
	if err != nil {
		return false, fmt.Errorf("files of conmon: %w", err)
	}
	for _, n := range names {
		if unix.Stat(filepath.Join(fds, n.Name()), &st) == nil && st.Dev == log.Dev && st.Ino == log.Ino {
			return true, nil
		}
	}
	return false, nil
}
