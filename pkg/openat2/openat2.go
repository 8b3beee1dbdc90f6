// Package openat2 opens paths below a directory that a stranger may fill: no element,
// link or exchange of files leads out of it.
//
// openat2(2) promises that, but it gives up with EAGAIN when anything on the machine is
// renamed or mounted while it walks over a ".." (a package manager or a compiler at work
// is enough). The kernel leaves it to the caller to try again; this package is the one
// place that does.
package openat2

import (
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// attempts bounds how often the kernel's own walk is repeated.
	attempts = 100
	// maxLinks is the number of symbolic links that a path may lead over, as with the
	// kernel (path_resolution(7)).
	maxLinks = 40
	// maxSteps bounds the elements that the walk of this package opens.
	maxSteps = 4096
)

// scope is how a path is kept inside of its directory.
type scope uint64

const (
	inRoot  scope = unix.RESOLVE_IN_ROOT
	beneath scope = unix.RESOLVE_BENEATH
	noLinks scope = unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS
)

// staysBelow reports whether what leads out of the directory is refused.
func (s scope) staysBelow() bool { return s&beneath != 0 }

// InRoot opens path with the directory dir as its root: absolute paths and links begin
// there, and ".." stops there. flags are those of open(2); O_CLOEXEC is added. Magic links
// of proc are refused with ELOOP. It never returns EAGAIN because of a concurrent rename or
// mount. The error is a bare errno.
func InRoot(dir int, path string, flags uint64) (int, error) {
	return open(inRoot, dir, path, flags)
}

// Beneath is InRoot, but what would lead out of dir, or is absolute, is refused with
// EXDEV.
func Beneath(dir int, path string, flags uint64) (int, error) {
	return open(beneath, dir, path, flags)
}

// NoLinks is Beneath, but a path that leads over a symbolic link, or ends at one, is
// refused with ELOOP. With O_PATH and O_NOFOLLOW the last element may be a link, which is
// opened itself.
func NoLinks(dir int, path string, flags uint64) (int, error) {
	return open(noLinks, dir, path, flags)
}

func open(s scope, dir int, path string, flags uint64) (int, error) {
	if path == "" {
		path = "."
	}
	for range attempts {
		fd, err := once(dir, path, flags, uint64(s))
		if err != unix.EAGAIN {
			return fd, err
		}
	}
	return walk(s, dir, path, flags)
}

// once is one call of openat2(2). A call that a signal has interrupted, as FUSE allows, is
// repeated, but not for ever: a FUSE file system can return EINTR to each.
func once(dir int, path string, flags, resolve uint64) (fd int, err error) {
	for range attempts {
		fd, err = unix.Openat2(dir, path, &unix.OpenHow{
			Flags: flags | unix.O_CLOEXEC, Resolve: resolve | unix.RESOLVE_NO_MAGICLINKS,
		})
		if err != unix.EINTR {
			break
		}
	}
	return fd, err
}

// walk resolves a path element by element. The kernel is never given a "..", so that it
// never gives up: ".." takes the last element off the path that has been resolved so far,
// which has no links, and which every step opens anew from dir. A link that somebody makes
// there meanwhile is ELOOP.
func walk(s scope, dir int, path string, flags uint64) (int, error) {
	if len(path) >= unix.PathMax {
		return -1, unix.ENAMETOOLONG
	}
	w := walker{scope: s, dir: dir, nofollow: flags&unix.O_NOFOLLOW != 0}
	if err := w.push(path); err != nil {
		return -1, err
	}
	for steps := 0; len(w.rest) > 0; steps++ {
		if steps == maxSteps {
			return -1, unix.ENAMETOOLONG
		}
		if err := w.step(); err != nil {
			return -1, err
		}
	}
	return once(dir, w.path(), flags, uint64(s)|unix.RESOLVE_NO_SYMLINKS)
}

// walker is a walk under way: done has no links, rest is still to be walked.
type walker struct {
	scope    scope
	dir      int
	nofollow bool // the last element is not followed
	done     []string
	rest     []string
	links    int
}

// push puts a path, or the target of a link, before what is left.
func (w *walker) push(path string) error {
	if strings.HasPrefix(path, "/") {
		if w.scope.staysBelow() {
			return unix.EXDEV
		}
		w.done = nil
	}
	w.rest = append(strings.Split(path, "/"), w.rest...)
	return nil
}

// path is what has been resolved so far, and elements below it.
func (w *walker) path(below ...string) string {
	return strings.Join(slices.Concat([]string{"."}, w.done, below), "/")
}

func (w *walker) step() error {
	element := w.rest[0]
	w.rest = w.rest[1:]
	switch element {
	case "", ".":
		return nil
	case "..":
		if len(w.done) > 0 {
			w.done = w.done[:len(w.done)-1]
		} else if w.scope.staysBelow() {
			return unix.EXDEV
		}
		return nil
	}
	target, err := w.look(element)
	switch {
	case err != nil:
		return err
	case target == "" || w.nofollow && len(w.rest) == 0:
		w.done = append(w.done, element)
		return nil
	}
	if w.links++; w.links > maxLinks || w.scope == noLinks {
		return unix.ELOOP
	}
	return w.push(target)
}

// look returns the target of a link; "" for what is none. What has more elements after it
// must be a directory.
func (w *walker) look(element string) (string, error) {
	fd, err := once(w.dir, w.path(element), unix.O_PATH|unix.O_NOFOLLOW, uint64(w.scope)|unix.RESOLVE_NO_SYMLINKS)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return "", err
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return "", nil
	case unix.S_IFLNK:
		buf := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(fd, "", buf)
		if err == nil && n == 0 {
			err = unix.ENOENT
		}
		return string(buf[:max(n, 0)]), err
	}
	if len(w.rest) > 0 {
		return "", unix.ENOTDIR
	}
	return "", nil
}
