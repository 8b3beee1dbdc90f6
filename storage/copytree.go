package storage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// treeCopy copies directories with owners, modes, times, extended attributes, hard links
// and holes, up to limits for all that it copies. Everything is opened by descriptor: no
// path is longer than the kernel takes, and none leads over a link.
type treeCopy struct {
	ctx    context.Context
	limits Limits
	// skip are directories, by their path in the source, that are copied without what is
	// in them.
	skip map[string]bool

	bytes, entries int64
	linked         map[inode]string // files with several names, by their path in the copy
	// What the file systems can't do.
	noClone, noRange bool
	buf              []byte
}

type inode struct{ device, number uint64 }

// copyTree copies the directory source to dst, which it makes. name is what skip has for
// source.
func (c *treeCopy) copyTree(source *os.File, name, dst string) error {
	c.linked = map[inode]string{}
	var st unix.Stat_t
	if err := unix.Fstat(int(source.Fd()), &st); err != nil {
		return err
	}
	if err := unix.Mkdir(dst, 0o700); err != nil {
		return &fs.PathError{Op: "mkdir", Path: dst, Err: err}
	}
	root, err := os.OpenFile(dst, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer root.Close()
	// For a position, and to be read: source may be opened as a path only.
	from, err := openAt(source, ".", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer from.Close()
	if err := c.content(from, root, root, name, ""); err != nil {
		return err
	}
	return finish(from, root, &st)
}

// openAt opens a name below dir, which is no link.
func openAt(dir *os.File, name string, flags int) (*os.File, error) {
	fd, err := unix.Openat(int(dir.Fd()), name, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}

// content copies what is in a directory. name is the directory's path in the source, rel
// its path below the copy's root.
func (c *treeCopy) content(from, to, root *os.File, name, rel string) error {
	if strings.Count(rel, "/") >= maxDepth/2 { // each level takes two descriptors
		return fmt.Errorf("%w: directories of its VOLUMEs lie more than %d deep", ErrTooLarge, maxDepth/2)
	}
	for {
		names, err := from.Readdirnames(1024)
		for _, n := range names {
			if err := c.entry(from, to, root, n, path.Join(name, n), path.Join(rel, n)); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// entry copies one file or directory.
func (c *treeCopy) entry(from, to, root *os.File, base, name, rel string) error {
	if c.ctx.Err() != nil {
		return context.Cause(c.ctx)
	}
	if c.entries++; c.entries > c.limits.Entries {
		return tooLarge("entries", "its VOLUMEs hold more files", c.limits.Entries)
	}
	var st unix.Stat_t
	if err := unix.Fstatat(int(from.Fd()), base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return &fs.PathError{Op: "stat", Path: name, Err: err}
	}
	kind := st.Mode & unix.S_IFMT
	if kind == unix.S_IFDIR {
		return c.directory(from, to, root, base, name, rel, &st)
	}
	if kind == unix.S_IFCHR || kind == unix.S_IFBLK {
		return nil // an unprivileged user can make none
	}
	if id := (inode{st.Dev, st.Ino}); st.Nlink > 1 {
		if first, ok := c.linked[id]; ok {
			return os.NewSyscallError("link", unix.Linkat(int(root.Fd()), first, int(to.Fd()), base, 0))
		}
		defer func() { c.linked[id] = rel }()
	}
	var err error
	switch kind {
	case unix.S_IFREG:
		err = c.file(from, to, base, &st)
	case unix.S_IFLNK:
		err = copyLink(from, to, base, &st)
	default:
		err = copySpecial(to, base, &st)
	}
	if err != nil {
		return fmt.Errorf("copy %s: %w", name, err)
	}
	return nil
}

func (c *treeCopy) directory(from, to, root *os.File, base, name, rel string, st *unix.Stat_t) error {
	in, err := openAt(from, base, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer in.Close()
	if err := unix.Mkdirat(int(to.Fd()), base, 0o700); err != nil {
		return &fs.PathError{Op: "mkdir", Path: name, Err: err}
	}
	out, err := openAt(to, base, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer out.Close()
	if !c.skip[name] {
		if err := c.content(in, out, root, name, rel); err != nil {
			return err
		}
	}
	if err := finish(in, out, st); err != nil {
		return fmt.Errorf("copy %s: %w", name, err)
	}
	return nil
}

func (c *treeCopy) file(from, to *os.File, base string, st *unix.Stat_t) error {
	in, err := openAt(from, base, unix.O_RDONLY)
	if err != nil {
		return err
	}
	defer in.Close()
	fd, err := unix.Openat(int(to.Fd()), base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	out := os.NewFile(uintptr(fd), base)
	defer out.Close()
	if err := c.data(in, out, st); err != nil {
		return err
	}
	return finish(in, out, st)
}

// chunk is how much of a file is copied at a time; bufferSize without copy_file_range(2).
const (
	chunk      = 8 << 20
	bufferSize = 64 << 10
)

// data copies the content of a file, and leaves its holes.
func (c *treeCopy) data(in, out *os.File, st *unix.Stat_t) error {
	size := st.Size
	if err := unix.Ftruncate(int(out.Fd()), size); err != nil {
		return err
	}
	if st.Blocks == 0 && size > bufferSize {
		return nil // nothing but a hole, for file systems that don't say where; small files may lie in the inode
	}
	for at := int64(0); at < size; {
		first, err := unix.Seek(int(in.Fd()), at, unix.SEEK_DATA)
		end := size
		switch {
		case errors.Is(err, unix.ENXIO):
			return nil // a hole up to the end
		case err != nil:
			first = at // a file system that knows no holes
		default:
			if end, err = unix.Seek(int(in.Fd()), first, unix.SEEK_HOLE); err != nil {
				return err
			}
		}
		end = min(end, size)
		if first == 0 && end == size && !c.noClone {
			if unix.IoctlFileClone(int(out.Fd()), int(in.Fd())) == nil {
				return c.wrote(size)
			}
			c.noClone = true
		}
		if err := c.span(in, out, first, end); err != nil {
			return err
		}
		at = end
	}
	return nil
}

// wrote counts bytes of the copy.
func (c *treeCopy) wrote(n int64) error {
	if c.bytes += n; c.bytes > c.limits.Size {
		return tooLarge("size", "its VOLUMEs hold more bytes", c.limits.Size)
	}
	return nil
}

// span copies a part of a file.
func (c *treeCopy) span(in, out *os.File, at, end int64) error {
	for at < end {
		if c.ctx.Err() != nil {
			return context.Cause(c.ctx)
		}
		n, err := c.piece(in, out, at, end-at)
		if n == 0 || err != nil {
			return err // without one it has become shorter
		}
		at += int64(n)
	}
	return nil
}

// piece copies some bytes, by the kernel where it can, and otherwise all but zeros: a
// file system such as FUSE does not say where holes are.
func (c *treeCopy) piece(in, out *os.File, at, left int64) (int, error) {
	if !c.noRange {
		from, to := at, at
		n, err := unix.CopyFileRange(int(in.Fd()), &from, int(out.Fd()), &to, int(min(left, chunk)), 0)
		if err == nil {
			return n, c.wrote(int64(n))
		}
		if !errors.Is(err, unix.EXDEV) && !errors.Is(err, unix.ENOSYS) && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EOPNOTSUPP) {
			return 0, err
		}
		c.noRange = true
	}
	if c.buf == nil {
		c.buf = make([]byte, bufferSize)
	}
	n, err := in.ReadAt(c.buf[:min(left, bufferSize)], at)
	if n == 0 || !errors.Is(err, io.EOF) && err != nil {
		if errors.Is(err, io.EOF) {
			err = nil
		}
		return 0, err
	}
	if bytes.Count(c.buf[:n], []byte{0}) == n {
		return n, nil
	}
	if _, err := out.WriteAt(c.buf[:n], at); err != nil {
		return 0, err
	}
	return n, c.wrote(int64(n))
}

func copyLink(from, to *os.File, base string, st *unix.Stat_t) error {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(int(from.Fd()), base, buf)
	if err != nil {
		return err
	}
	if err := unix.Symlinkat(string(buf[:n]), int(to.Fd()), base); err != nil {
		return err
	}
	return ownAt(to, base, st)
}

func copySpecial(to *os.File, base string, st *unix.Stat_t) error {
	if err := unix.Mknodat(int(to.Fd()), base, st.Mode&unix.S_IFMT|0o600, 0); err != nil {
		return err
	}
	if err := unix.Fchownat(int(to.Fd()), base, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if err := unix.Fchmodat(int(to.Fd()), base, st.Mode&0o7777, 0); err != nil {
		return err
	}
	return ownAt(to, base, st)
}

// ownAt sets owner and times of what is not opened.
func ownAt(dir *os.File, base string, st *unix.Stat_t) error {
	if err := unix.Fchownat(int(dir.Fd()), base, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	return unix.UtimesNanoAt(int(dir.Fd()), base, []unix.Timespec{st.Atim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW)
}

// finish gives a copied file or directory the owner, extended attributes, mode and times
// of the original, in this order: each may undo what comes after it.
func finish(from, to *os.File, st *unix.Stat_t) error {
	fd := int(to.Fd())
	if err := unix.Fchown(fd, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err := copyXattrs(from, to); err != nil {
		return err
	}
	if err := unix.Fchmod(fd, st.Mode&0o7777); err != nil {
		return err
	}
	return unix.UtimesNanoAt(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), []unix.Timespec{st.Atim, st.Mtim}, 0)
}

// copyXattrs copies capabilities, access control lists and the user's attributes. Lists
// name users: where these have no ID here, the mode is what is left.
func copyXattrs(from, to *os.File) error {
	var few [512]byte
	if n, err := unix.Flistxattr(int(from.Fd()), few[:]); n == 0 && err == nil || errors.Is(err, unix.ENOTSUP) {
		return nil // as most
	}
	attrs := map[string]string{}
	if err := readXattrs(from, attrs); err != nil {
		return err
	}
	for name, value := range attrs {
		name = strings.TrimPrefix(name, paxXattr)
		list := strings.HasPrefix(name, "system.posix_acl_")
		if name != "security.capability" && !strings.HasPrefix(name, "user.") && !list {
			continue
		}
		if err := unix.Fsetxattr(int(to.Fd()), name, []byte(value), 0); err != nil && !list && !errors.Is(err, unix.ENOTSUP) {
			return fmt.Errorf("set %s: %w", name, err)
		}
	}
	return nil
}
