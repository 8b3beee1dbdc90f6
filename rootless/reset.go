package rootless

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// stopInterval is the pause between two looks whether the daemon has ended.
const stopInterval = 20 * time.Millisecond

// ErrNotOurs says that a directory which is to be removed is not a daemon's.
var ErrNotOurs = errors.New("not a directory of subpod's")

// checkOurs returns ErrNotOurs for a directory with something in it and without what each
// daemon makes first: a mistake in a path must not cost what is there.
func checkOurs(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	// The second is of versions that locked the run directory only, the third systemd's.
	marks := []string{fileLock, "state.db", "subpod.sock"}
	kept := []string{"volumes", "secrets"} // by an earlier reset
	rest := slices.DeleteFunc(slices.Clone(entries), func(e os.DirEntry) bool { return slices.Contains(kept, e.Name()) })
	if len(rest) == 0 || slices.ContainsFunc(entries, func(e os.DirEntry) bool { return slices.Contains(marks, e.Name()) }) {
		return nil
	}
	return fmt.Errorf("%s is %w (it has no %s): nothing was removed", dir, ErrNotOurs, fileLock)
}

// Stop sends SIGTERM to the daemon that has locked the run directory and waits until
// it has ended, with all that runs in its node. It returns false when there is none.
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
		case <-time.After(stopInterval):
		}
	}
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
