package rootless

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// how directories are opened in which something is made: nothing is followed, so what
// was looked at is where it is made.
var how = unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS}

// openAbove opens the directory path, which it makes where it is missing and the list
// names it; else the nearest directory above it that is there and allowed. Its name is
// the one asked for. So a pod's logs can lie right below the home, or /tmp, which are
// not given as a whole.
func (b *broker) openAbove(path string) (*os.File, error) {
	if err := b.makeDir(path); err != nil && !errors.Is(err, ErrNotAllowed) {
		return nil, err
	}
	tree, refused := b.open(path)
	for at := path; refused != nil && tree == nil && at != "/"; {
		at = filepath.Dir(at)
		tree, _ = b.open(at)
	}
	if tree != nil {
		return tree, nil
	}
	return nil, refused
}

// openLog opens a file, which it makes where it is missing and the list names it: a
// container's log in a directory that is not given as a whole.
func (b *broker) openLog(path string) (*os.File, error) {
	dir, rest, err := nearest(path)
	if err == nil && rest != "" && filepath.Dir(rest) == "/" && b.list.names(filepath.Join(dir, rest)) {
		if err := b.makeFile(dir, filepath.Base(rest)); err != nil {
			return nil, fmt.Errorf("make the file %s: %w", path, err)
		}
	}
	return b.open(path)
}

func (b *broker) makeFile(dir, name string) error {
	at, err := unix.Openat2(unix.AT_FDCWD, dir, &how)
	if err != nil {
		return err
	}
	defer unix.Close(at)
	fd, err := unix.Openat(at, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if errors.Is(err, unix.EEXIST) {
		return nil // somebody else was quicker
	}
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

// makeDir makes a directory, and those on the way. ErrNotAllowed where the list does
// not name it. Idempotent.
func (b *broker) makeDir(path string) error {
	at, rest, err := nearest(path)
	if err != nil || !b.list.names(filepath.Join(at, rest)) {
		return b.refusal(path, nil)
	}
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
	why := "node.host_paths does not list it"
	if l := b.list; slices.ContainsFunc(l.secret, func(s string) bool { return overlap(path, s) }) {
		why = "it is, holds or lies in what no list gives: the daemon's own files, or the user's keys, session or home"
	} else if l.all {
		why = "it is one of those that \"/\" in node.host_paths leaves out (session, hidden files, sockets): it needs an entry of its own"
	}
	return deniedError(path + ": no client outside of the node has named it (subpod run -v, subpod play), and " + why)
}
