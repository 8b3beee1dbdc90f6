package rootless

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// openAbove opens the directory path, which it makes where it is missing and the list
// names it; else the nearest directory above it that is there and allowed. Its name is
// the one asked for. So a pod's logs can lie right below the home, or /tmp, which are
// not given as a whole.
func (b *broker) openAbove(path string) (*os.File, error) {
	if err := b.makeDir(path); err != nil && !errors.Is(err, ErrNotAllowed) {
		return nil, err
	}
	for at := path; ; at = filepath.Dir(at) {
		tree, err := b.open(at)
		if err == nil || at == "/" {
			return tree, err
		}
	}
}

// makeDir makes a directory, and those on the way. ErrNotAllowed where the list does
// not name it. Idempotent.
func (b *broker) makeDir(path string) error {
	at, rest, err := nearest(path)
	if err != nil || !b.list.names(filepath.Join(at, rest)) {
		return b.refusal(path, nil)
	}
	// Nothing below is followed: what was looked at is where it is made.
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS}
	fd, err := unix.Openat2(unix.AT_FDCWD, at, &how)
	for _, name := range strings.FieldsFunc(rest, func(r rune) bool { return r == filepath.Separator }) {
		if err != nil {
			break
		}
		dir := fd
		if err = unix.Mkdirat(dir, name, 0o755); err == nil || errors.Is(err, unix.EEXIST) {
			fd, err = unix.Openat2(dir, name, &how)
		} else {
			fd = -1
		}
		unix.Close(dir)
	}
	if err != nil {
		return fmt.Errorf("make the directory %s: %w", path, err)
	}
	return unix.Close(fd)
}

// nearest returns the nearest file above path, or path itself, that is there, links
// followed, and the rest of path.
func nearest(path string) (real, rest string, err error) {
	for at := path; ; at = filepath.Dir(at) {
		real, err = filepath.EvalSymlinks(at)
		if err == nil {
			return real, strings.TrimPrefix(path, at), nil
		}
		if !errors.Is(err, fs.ErrNotExist) || at == "/" {
			return "", "", err
		}
	}
}

// refusal returns the error for a path that cannot be given, after err of looking for it.
// That it is not there is said only of what the list names.
func (b *broker) refusal(path string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		if at, rest, err := nearest(path); err == nil && b.list.names(filepath.Join(at, rest)) {
			return &os.PathError{Op: "open", Path: path, Err: unix.ENOENT}
		}
	}
	return deniedError("neither did a client outside of the node name " + path + ", nor does node.host_paths list it")
}
