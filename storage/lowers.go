package storage

import (
	"archive/tar"
	"bufio"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/pkg/openat2"
)

const (
	whiteoutPrefix = ".wh."
	opaqueMarker   = ".wh..wh..opq"
	opaqueXattr    = "user.overlay.opaque"
)

// lowers are the layers below one that is being unpacked, uppermost first. The zero
// value is none.
type lowers struct {
	homes map[string]*os.File // directories of all layers of a store, by path
	dirs  []string            // of the layers' files
	open  map[string]*os.File

	rawNames bool // see encodeNames
}

// readLowers reads a list that writeLowers has made, and opens what is needed to look
// into the layers from within a chroot(2). The name "" is that of an empty list.
func readLowers(name string) (*lowers, error) {
	l := &lowers{homes: map[string]*os.File{}, open: map[string]*os.File{}}
	if name == "" {
		return l, nil
	}
	list, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer list.Close()
	lines := bufio.NewScanner(list)
	for lines.Scan() {
		dir := lines.Text()
		if dir == unlockedLine {
			return nil, errStagingUnlocked
		}
		if dir == rawNamesLine {
			l.rawNames = true
			continue
		}
		l.dirs = append(l.dirs, dir)
		home := filepath.Dir(filepath.Dir(dir))
		if l.homes[home] != nil {
			continue
		}
		if l.homes[home], err = os.Open(home); err != nil {
			return nil, err
		}
	}
	return l, lines.Err()
}

// layer returns the directory of the layer with this number.
func (l *lowers) layer(i int) (*os.File, error) {
	dir := l.dirs[i]
	if f := l.open[dir]; f != nil {
		return f, nil
	}
	id := filepath.Dir(dir)
	f, err := openBeneath(l.homes[filepath.Dir(id)], path.Join(filepath.Base(id), filepath.Base(dir)), unix.O_RDONLY|unix.O_DIRECTORY)
	if err == nil {
		l.open[dir] = f
	}
	return f, err
}

// openBeneath opens a path below dir that has no links in it.
func openBeneath(dir *os.File, name string, flags uint64) (*os.File, error) {
	fd, err := openat2.NoLinks(int(dir.Fd()), name, flags|unix.O_NOFOLLOW|unix.O_NONBLOCK)
	if err != nil {
		return nil, &os.PathError{Op: "openat2", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

// lowerFile is a file as the layers below show it.
type lowerFile struct {
	stat unix.Stat_t
	dir  *os.File // of the layer that has it
	name string   // below dir
}

func (f *lowerFile) is(kind uint32) bool { return f != nil && f.stat.Mode&unix.S_IFMT == kind }

// lookup returns the file at a path, or nil where the layers show none. All above it
// must be directories. Links are not followed.
func (l *lowers) lookup(name string) (*lowerFile, error) {
	for i := range l.dirs {
		root, err := l.layer(i)
		if err != nil {
			return nil, err
		}
		found, hidden, err := lookupIn(root, name)
		if found != nil || hidden || err != nil {
			return found, err
		}
	}
	return nil, nil
}

// lookupIn looks for a path in one layer. hidden means that the layer hides what those
// below have there.
func lookupIn(root *os.File, name string) (found *lowerFile, hidden bool, err error) {
	elements := strings.Split(name, "/")
	for i, element := range elements {
		at := path.Join(elements[:i+1]...)
		var st unix.Stat_t
		err := unix.Fstatat(int(root.Fd()), at, &st, unix.AT_SYMLINK_NOFOLLOW)
		switch {
		case errors.Is(err, unix.ENOENT):
			return nil, hidden || whitedOut(root, path.Dir(at), element), nil
		case err != nil:
			return nil, false, err
		case st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0:
			return nil, true, nil // a whiteout of the kernel's overlay
		case i == len(elements)-1:
			return &lowerFile{stat: st, dir: root, name: at}, false, nil
		case st.Mode&unix.S_IFMT != unix.S_IFDIR:
			return nil, true, nil
		}
		hidden = hidden || isOpaque(root, at)
	}
	return nil, hidden, nil
}

// whitedOut reports whether a directory of a layer for fuse-overlayfs hides a name.
func whitedOut(root *os.File, dir, name string) bool {
	var st unix.Stat_t
	return unix.Fstatat(int(root.Fd()), path.Join(dir, whiteoutPrefix+name), &st, unix.AT_SYMLINK_NOFOLLOW) == nil
}

// isOpaque reports whether a directory of a layer hides what is below it.
func isOpaque(root *os.File, dir string) bool {
	var st unix.Stat_t
	if unix.Fstatat(int(root.Fd()), path.Join(dir, opaqueMarker), &st, unix.AT_SYMLINK_NOFOLLOW) == nil {
		return true
	}
	f, err := openBeneath(root, dir, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return false
	}
	defer f.Close()
	var value [1]byte
	n, err := unix.Fgetxattr(int(f.Fd()), opaqueXattr, value[:])
	return err == nil && n == 1 && value[0] == 'y'
}

// readlink returns what a symbolic link refers to.
func (f *lowerFile) readlink() (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(int(f.dir.Fd()), f.name, buf)
	return string(buf[:max(n, 0)]), err
}

// names returns all names in the root directories of the layers.
func (l *lowers) names() ([]string, error) {
	var all []string
	for i := range l.dirs {
		dir, err := l.layer(i)
		if err != nil {
			return nil, err
		}
		again, err := openBeneath(dir, ".", unix.O_RDONLY|unix.O_DIRECTORY) // for a position of its own
		if err != nil {
			return nil, err
		}
		names, err := again.Readdirnames(-1)
		again.Close()
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			if !strings.HasPrefix(name, whiteoutPrefix) {
				all = append(all, name)
			}
		}
	}
	return all, nil
}

// header describes a file of a lower layer as an entry with this name.
func (l *lowerFile) header(name string) (*tar.Header, error) {
	h := &tar.Header{Name: name, Mode: int64(l.stat.Mode & 0o7777), Uid: int(l.stat.Uid), Gid: int(l.stat.Gid),
		ModTime: time.Unix(l.stat.Mtim.Unix()), PAXRecords: map[string]string{}}
	switch l.stat.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		h.Typeflag = tar.TypeDir
	case unix.S_IFREG:
		h.Typeflag, h.Size = tar.TypeReg, l.stat.Size
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
		return h, nil
	case unix.S_IFLNK:
		h.Typeflag = tar.TypeSymlink
		var err error
		h.Linkname, err = l.readlink()
		return h, err
	default:
		return nil, fmt.Errorf("%s is a device or a socket in a lower layer", name)
	}
	file, err := openBeneath(l.dir, l.name, unix.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return h, readXattrs(file, h.PAXRecords)
}

// readXattrs adds the extended attributes of an image's file to the records of a header.
func readXattrs(file *os.File, records map[string]string) error {
	list := make([]byte, 64<<10)
	n, err := unix.Flistxattr(int(file.Fd()), list)
	if errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	if err != nil {
		return err
	}
	value := make([]byte, 64<<10)
	for attr := range strings.SplitSeq(strings.TrimRight(string(list[:n]), "\x00"), "\x00") {
		if attr == "" || ofOverlays(attr) || attr == "security.selinux" {
			continue
		}
		n, err := unix.Fgetxattr(int(file.Fd()), attr, value)
		if errors.Is(err, unix.ENODATA) {
			continue
		}
		if err != nil {
			return err
		}
		records[paxXattr+attr] = string(value[:n])
	}
	return nil
}
