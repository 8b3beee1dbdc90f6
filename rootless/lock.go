package rootless

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ErrHeld is returned when another process has locked the run or the data
// directory. The text names the directory and the other's PID.
var ErrHeld = errors.New("directory is in use")

// A daemon locks its run directory and its data directory, in this order, before it
// changes anything in them, and so does Reset. The lock is flock(2)'s on a file in the
// directory: the kernel releases it when its owner ends, however it ends, so there are
// no stale ones. The file holds the owner's PID, for messages and for Stop.
const fileLock = "daemon.lock"

func lockFile(dir string) string { return filepath.Join(dir, fileLock) }

const (
	// identifyTimeout bounds the wait for the owner of a lock that was taken just now to
	// write its PID.
	identifyTimeout = 200 * time.Millisecond
	// identifyInterval is the pause between two looks at it.
	identifyInterval = 5 * time.Millisecond
)

// dirLocks are locked directories.
type dirLocks []*os.File

// lockDirs locks all directories or none. ErrHeld when another process has locked one.
func lockDirs(log *slog.Logger, dirs ...string) (locks dirLocks, err error) {
	for _, dir := range dirs {
		if locks.has(dir) {
			continue // the same one by another name
		}
		f, err := lockDir(log, dir)
		if err != nil {
			locks.release()
			return nil, err
		}
		locks = append(locks, f)
	}
	return locks, nil
}

// release gives the locks up; the files stay.
func (l dirLocks) release() {
	for _, f := range l {
		f.Close()
	}
}

func (l dirLocks) has(dir string) bool {
	return slices.ContainsFunc(l, func(f *os.File) bool { return isFile(f, lockFile(dir)) })
}

// writePID writes who has the locks.
func (l dirLocks) writePID() error {
	for _, f := range l {
		err := f.Truncate(0)
		if err == nil {
			_, err = f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
		}
		if err != nil {
			return fmt.Errorf("write the lock file: %w", err)
		}
	}
	return nil
}

// lockDir locks a directory, which it makes if needed, until the file is closed or
// this process ends. ErrHeld when another process has it.
func lockDir(log *slog.Logger, dir string) (*os.File, error) {
	name := lockFile(dir)
	for {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			// It came, and perhaps went again, while MkdirAll looked.
			if st, gone := os.Lstat(dir); errors.Is(err, fs.ErrExist) && (gone != nil || st.IsDir()) {
				continue
			}
			return nil, fmt.Errorf("make %s: %w", dir, err)
		}
		f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
		if errors.Is(err, fs.ErrNotExist) {
			continue // a Reset has removed the directory in between
		}
		if err != nil {
			return nil, fmt.Errorf("open the lock file: %w", err)
		}
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case errors.Is(err, unix.EWOULDBLOCK):
			f.Close()
			return nil, heldError(dir)
		case errors.Is(err, unix.ENOLCK) || errors.Is(err, unix.EOPNOTSUPP):
			// Some network file systems have none; nothing else can be had there.
			log.Warn("the directory cannot be locked against a second daemon", "dir", dir, "error", err)
		case err != nil:
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", name, err)
		}
		if isFile(f, name) {
			return f, nil
		}
		f.Close() // of a directory that a Reset has removed
	}
}

// checkHeld returns ErrHeld as lockDirs would. From an outer user namespace the owner of
// a lock cannot be identified: it is in another one.
func (c Config) checkHeld() error {
	for _, dir := range []string{c.RunDir, c.DataDir} {
		if pid, err := holder(dir); err != nil || pid != 0 {
			return heldError(dir)
		}
	}
	return nil
}

// isFile reports whether the open file is the one that has the name now.
func isFile(f *os.File, name string) bool {
	open, err1 := f.Stat()
	named, err2 := os.Stat(name)
	return err1 == nil && err2 == nil && os.SameFile(open, named)
}

func heldError(dir string) error {
	pid, err := holder(dir)
	if err != nil || pid == 0 {
		return fmt.Errorf("%w: %s is locked by a daemon, or a \"subpod system reset\", that cannot be identified", ErrHeld, dir)
	}
	return fmt.Errorf("%w: %s is locked by the process with PID %d: a subpod daemon, or a \"subpod system reset\" (see: ps -p %d); stop it first, or choose another directory",
		ErrHeld, dir, pid, pid)
}

// holder returns the PID of the process that has locked the directory, 0 when none
// has. The PID in the file counts only if that process has the file open: the owner
// may not have written it yet, and what stands there then is an earlier one's, by now
// perhaps another program's.
func holder(dir string) (int, error) {
	name := lockFile(dir)
	for deadline := time.Now().Add(identifyTimeout); ; time.Sleep(identifyInterval) {
		locked, err := isLocked(name)
		if err != nil || !locked {
			return 0, err
		}
		text, err := os.ReadFile(name)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return 0, err
		}
		if pid := ownerIn(text, name); pid > 0 {
			return pid, nil
		}
		if time.Now().After(deadline) {
			return 0, fmt.Errorf("%s is locked, but its owner cannot be identified: it says %q", name, strings.TrimSpace(string(text)))
		}
	}
}

// Owner returns the PID of the daemon, or of the Reset, that has locked the directory; 0 when
// none has, or none that can be identified. It leaves the lock itself alone: nobody who wants
// it meanwhile is refused.
func Owner(dir string) int {
	name := lockFile(dir)
	text, _ := os.ReadFile(name)
	return ownerIn(text, name)
}

// ownerIn returns the PID that the text of a lock file has, if that process has the file open.
func ownerIn(text []byte, name string) int {
	if pid, err := strconv.Atoi(strings.TrimSpace(string(text))); err == nil && pid > 0 && hasOpen(pid, name) {
		return pid
	}
	return 0
}

func isLocked(name string) (bool, error) {
	f, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	err = unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
	switch {
	case err == nil, errors.Is(err, unix.ENOLCK), errors.Is(err, unix.EOPNOTSUPP):
		return false, nil
	case errors.Is(err, unix.EWOULDBLOCK):
		return true, nil
	}
	return false, fmt.Errorf("look who has locked %s: %w", name, err)
}

// hasOpen reports whether a process has a file open.
func hasOpen(pid int, name string) bool {
	want, err := os.Stat(name)
	if err != nil {
		return false
	}
	dir := filepath.Join("/proc", strconv.Itoa(pid), "fd")
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		if have, err := os.Stat(filepath.Join(dir, e.Name())); err == nil && os.SameFile(have, want) {
			return true
		}
	}
	return false
}

// Reset stops the daemon of the two directories, if one runs, and removes them with
// all in them. Both stay locked until they are gone, so that no daemon starts in
// between. It returns whether it has stopped a daemon, and what it has removed; a
// directory that is not there is not an error. What keep names in the data directory stays.
// stopTimeout bounds the end of the daemon.
//
// ErrHeld, before anything is stopped or removed, when the daemon that uses one
// directory uses another one beside it: its pods or its images are not what the
// caller has named. ErrNotOurs, then as well, for a directory that no daemon has ever had.
func Reset(ctx context.Context, runDir, dataDir string, stopTimeout time.Duration, keep ...string) (stopped bool, removed []string, err error) {
	if err := errors.Join(checkOurs(runDir), checkOurs(dataDir), checkOwners(runDir, dataDir)); err != nil {
		return false, nil, err
	}
	stop, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	if stopped, err = Stop(stop, runDir); err != nil {
		return stopped, nil, err
	}
	var dirs []string
	for _, dir := range []string{runDir, dataDir} {
		if _, err := os.Lstat(dir); err == nil {
			dirs = append(dirs, dir)
		}
	}
	locks, err := lockDirs(slog.Default(), dirs...)
	if err != nil {
		return stopped, nil, err
	}
	defer locks.release()
	_ = locks.writePID() // a full disk must not keep anyone from emptying it
	var errs []error
	for _, dir := range dirs {
		stays := keep
		if dir != dataDir {
			stays = nil
		}
		if err := removeLocked(ctx, dir, stays); err != nil {
			errs = append(errs, err)
			continue
		}
		removed = append(removed, dir)
	}
	return stopped, removed, errors.Join(errs...)
}

// checkOwners returns ErrHeld unless one daemon, or none, has both directories.
func checkOwners(runDir, dataDir string) error {
	run, err := holder(runDir)
	if err != nil {
		return err
	}
	data, err := holder(dataDir)
	if err != nil {
		return err
	}
	if data != 0 && data != run {
		return fmt.Errorf("%w; nothing was removed", heldError(dataDir))
	}
	if run != 0 && data == 0 {
		// Of another data directory, or of a version that locked only the run directory.
		if c, err := loadConfig(nodeDir(runDir)); err == nil && c.DataDir != dataDir {
			return fmt.Errorf("%w: the daemon with PID %d uses %s and the data directory %s, not %s; nothing was removed",
				ErrHeld, run, runDir, c.DataDir, dataDir)
		}
	}
	return nil
}

// removeLocked removes a locked directory, the lock file last: whoever finds it gone
// makes another one, which must not be removed.
func removeLocked(ctx context.Context, dir string, keep []string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() == fileLock || slices.Contains(keep, e.Name()) {
			continue
		}
		if err := RemoveAll(ctx, filepath.Join(dir, e.Name())); err != nil {
			return err
		}
	}
	if err := os.Remove(lockFile(dir)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	// From here on another daemon may start: what it makes is its own.
	err = os.Remove(dir)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTEMPTY) {
		return nil
	}
	return err
}
