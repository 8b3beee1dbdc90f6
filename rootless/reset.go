package rootless

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Stop ends the daemon that holds the run directory, with all that runs in its node,
// and waits for its end. It returns false when there is none.
func Stop(ctx context.Context, runDir string) (stopped bool, err error) {
	pid, err := holder(runDir)
	if err != nil || pid == 0 {
		return false, err
	}
	if err := unix.Kill(pid, unix.SIGTERM); err != nil && !errors.Is(err, unix.ESRCH) {
		return false, fmt.Errorf("stop the daemon (process %d): %w", pid, err)
	}
	for {
		if now, err := holder(runDir); err != nil || now != pid {
			return true, err
		}
		select {
		case <-ctx.Done():
			return false, fmt.Errorf("the daemon (process %d) does not end: %w", pid, ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// holder is the PID of the daemon that has the lock of the run directory, 0 for none.
func holder(runDir string) (int, error) {
	f, err := os.Open(lockFile(runDir))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer f.Close()
	err = unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
	if err == nil {
		return 0, nil
	}
	if !errors.Is(err, unix.EWOULDBLOCK) {
		return 0, fmt.Errorf("look who holds %s: %w", runDir, err)
	}
	text, err := os.ReadFile(lockFile(runDir))
	if err != nil {
		return 0, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || pid <= 0 {
		return 0, fmt.Errorf("%s is held, but names no process: %q", lockFile(runDir), text)
	}
	return pid, nil
}

// RemoveAll removes a directory with all in it, also files that belong to the
// user's subordinate IDs, while no node runs. Idempotent.
func RemoveAll(ctx context.Context, dir string) error {
	if err := os.RemoveAll(dir); err == nil {
		return nil
	}
	var stderr bytes.Buffer
	code, err := Unshare(ctx, []string{"rm", "-rf", "--one-file-system", "--", dir}, EnterOptions{Stderr: &stderr})
	if err != nil {
		return fmt.Errorf("remove %s: %w", dir, err)
	}
	if code != 0 {
		return fmt.Errorf("remove %s: %s", dir, bytes.TrimSpace(stderr.Bytes()))
	}
	return nil
}
