// Package tree copies files as tar streams out of and into directories that a
// stranger may have filled: no path, link or entry leads out of them.
package tree

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/pkg/errclass"
	"github.com/subpod/subpod/pkg/openat2"
)

// ErrNotFound says that there is no such path.
var ErrNotFound = errors.New("no such file or directory")

// ErrArchive says that a stream is no archive, or holds what cannot be unpacked.
var ErrArchive = errclass.New(errdefs.ErrInvalidArgument, "bad archive")

// Place is a path in a tree: the directory that holds it, links resolved, and
// its name there. It must be closed.
type Place struct {
	*os.Root
	// Name is "." where the path is a root itself.
	Name string
	// Exists and IsDir say what is there; a link counts as what it points to.
	Exists, IsDir bool
}

// At finds path below the directory root, as a process would whose root it is:
// absolute links and ".." stay inside. The last part need not exist.
// ErrNotFound says that a directory above it does not.
func At(root *os.File, name string) (*Place, error) {
	clean := path.Clean("/" + name)
	p := &Place{Name: "."}
	if fd, err := openIn(root, clean); err == nil {
		defer unix.Close(fd)
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return nil, fmt.Errorf("stat %s: %w", name, err)
		}
		p.Exists, p.IsDir = true, st.Mode&unix.S_IFMT == unix.S_IFDIR
		// The path without links: relative to the root that the descriptor has.
		if clean, err = resolved(root, fd); err != nil {
			return nil, fmt.Errorf("resolve %s: %w", name, err)
		}
	} else if err != unix.ENOENT {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	parent, base := path.Split(clean)
	if base != "" {
		p.Name = base
	}
	fd, err := openIn(root, parent)
	if err == unix.ENOENT || err == unix.ENOTDIR {
		return nil, fmt.Errorf("%s: %w", strings.TrimSuffix(parent, "/"), ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", parent, err)
	}
	defer unix.Close(fd)
	if p.Root, err = os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", fd)); err != nil {
		return nil, fmt.Errorf("open %s: %w", parent, err)
	}
	return p, nil
}

// openIn opens a path with root as the root.
func openIn(root *os.File, name string) (int, error) {
	return openat2.InRoot(int(root.Fd()), name, unix.O_PATH)
}

// resolved returns the path of a descriptor below root.
func resolved(root *os.File, fd int) (string, error) {
	top, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", root.Fd()))
	if err != nil {
		return "", err
	}
	own, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return "", err
	}
	if top == "/" {
		return own, nil
	}
	rel, ok := strings.CutPrefix(own, top)
	if !ok || rel != "" && rel[0] != '/' {
		return "", fmt.Errorf("%s is not below %s", own, top)
	}
	return path.Clean("/" + rel), nil
}

// Pack writes what is at the place, and below it, as a tar stream whose first
// entry is its name. Sockets are left out.
func Pack(p *Place, w io.Writer) error { return PackAs(p, p.Name, w) }

// PackAs is Pack with another name for what is at the place.
func PackAs(p *Place, as string, w io.Writer) error {
	out := tar.NewWriter(w)
	err := Walk(p.Root, p.Name, func(name string, d fs.DirEntry) error {
		info, err := d.Info()
		if err != nil {
			return err
		}
		return packOne(p.Root, out, name, path.Join(as, below(p.Name, name)), info)
	})
	if err != nil {
		return err
	}
	return out.Close()
}

// below is the part of a walked name that comes after its top.
func below(top, name string) string {
	switch {
	case name == top:
		return ""
	case top == ".":
		return name
	}
	return strings.TrimPrefix(name, top)
}

func packOne(root *os.Root, out *tar.Writer, name, as string, info fs.FileInfo) error {
	link := ""
	switch {
	case info.Mode()&fs.ModeSocket != 0:
		return nil
	case info.Mode()&fs.ModeSymlink != 0:
		var err error
		if link, err = root.Readlink(name); err != nil {
			return err
		}
	}
	h, err := tar.FileInfoHeader(info, link)
	if err != nil {
		return err
	}
	h.Name = as
	if info.IsDir() {
		h.Name += "/"
	}
	h.Uname, h.Gname = "", ""
	if !info.Mode().IsRegular() {
		return out.WriteHeader(h)
	}
	f, err := openRegular(root, name)
	if err != nil {
		return err
	}
	defer f.Close()
	content, err := contentOf(f, &h.Size)
	if err != nil {
		return err
	}
	if err := out.WriteHeader(h); err != nil {
		return err
	}
	// A file that shrinks meanwhile ends in an error; what grows is cut.
	_, err = io.CopyN(out, content, h.Size)
	return err
}

// Unpack reads a tar stream of a stranger into dir. The first part of each name is replaced
// by rename, if that is not "". Files get the caller as their owner, so set-user-ID and
// set-group-ID bits are dropped: they would let others act as the caller. Devices and other
// special files are refused: a FIFO holds up whoever opens it. What is a hole in the stream,
// or a long row of zeros, is a hole in the file. ErrArchive; the cause of ctx when that ends.
func Unpack(ctx context.Context, dir *os.Root, rename string, r io.Reader) error {
	return unpack(ctx, dir, rename, r, 0, false)
}

// UnpackSetID is Unpack for a dir whose owner's identity is the stranger's own, as a
// container's root is: set-user-ID and set-group-ID bits stay, and FIFOs are made.
func UnpackSetID(ctx context.Context, dir *os.Root, rename string, r io.Reader) error {
	return unpack(ctx, dir, rename, r, fs.ModeSetuid|fs.ModeSetgid, false)
}

// UnpackOwned is UnpackSetID that also keeps the owners of files, as far as the caller
// has their IDs.
func UnpackOwned(ctx context.Context, dir *os.Root, rename string, r io.Reader) error {
	return unpack(ctx, dir, rename, r, fs.ModeSetuid|fs.ModeSetgid, true)
}

func unpack(ctx context.Context, dir *os.Root, rename string, r io.Reader, keep fs.FileMode, owners bool) error {
	in := tar.NewReader(r)
	content := contentReader{ctx, in}
	for {
		h, err := in.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read the stream: %w", classified(err))
		}
		name := renamed(h.Name, rename)
		err = unpackOne(dir, name, h, rename, content, keep|fs.ModeSticky)
		if errors.Is(err, fs.ErrNotExist) && strings.Contains(path.Clean(h.Name), "/") {
			// A stream need not have entries for the directories of its files.
			if err = dir.MkdirAll(path.Dir(name), 0o755); err == nil {
				err = unpackOne(dir, name, h, rename, content, keep|fs.ModeSticky)
			}
		}
		if err != nil {
			return fmt.Errorf("write %s: %w", name, classified(err))
		}
		if owners && h.Typeflag != tar.TypeXGlobalHeader && h.Typeflag != tar.TypeLink {
			if err := own(dir, name, h, keep|fs.ModeSticky); err != nil {
				return fmt.Errorf("write %s: %w", name, err)
			}
		}
	}
}

// classified is an error of unpacking, with ErrArchive where the stream is to blame: not the
// disk, nor who sends.
func classified(err error) error {
	stream := []error{
		tar.ErrHeader, io.ErrUnexpectedEOF,
		fs.ErrExist, fs.ErrNotExist, syscall.ENOTDIR, syscall.EISDIR, syscall.ELOOP, syscall.ENAMETOOLONG, syscall.EINVAL, syscall.EFBIG,
	}
	blamed := slices.ContainsFunc(stream, func(of error) bool { return errors.Is(err, of) })
	var path *fs.PathError
	var link *os.LinkError
	var errno syscall.Errno
	refused := (errors.As(err, &path) || errors.As(err, &link)) && !errors.As(err, &errno) // by os.Root
	if errors.Is(err, ErrArchive) || !blamed && !refused {
		return err
	}
	return fmt.Errorf("%w: %w", ErrArchive, err)
}

// own gives a file its owner; an ID that the caller does not have is left. The change
// takes the bits of the mode away that make it another user's program.
func own(dir *os.Root, name string, h *tar.Header, keep fs.FileMode) error {
	err := dir.Lchown(name, h.Uid, h.Gid)
	if errors.Is(err, syscall.EINVAL) || errors.Is(err, fs.ErrPermission) {
		return nil
	}
	if err != nil || h.Typeflag == tar.TypeSymlink {
		return err
	}
	mode := h.FileInfo().Mode()
	return dir.Chmod(name, mode.Perm()|mode&keep)
}

func renamed(name, rename string) string {
	name = strings.TrimPrefix(path.Clean("/"+name), "/")
	if name == "" {
		name = "."
	}
	if rename == "" {
		return name
	}
	if name == "." {
		return rename
	}
	_, rest, _ := strings.Cut(name, "/")
	return path.Join(rename, rest)
}

func unpackOne(dir *os.Root, name string, h *tar.Header, rename string, content io.Reader, keep fs.FileMode) error {
	mode := h.FileInfo().Mode()
	switch h.Typeflag {
	case tar.TypeDir:
		err := dir.Mkdir(name, mode.Perm()|0o700)
		if errors.Is(err, fs.ErrExist) {
			if st, statErr := dir.Stat(name); statErr == nil && st.IsDir() {
				return nil // it keeps its mode
			}
		}
		if err != nil {
			return err
		}
		return dir.Chmod(name, mode.Perm()|0o700)
	case tar.TypeReg:
		if err := removeFile(dir, name); err != nil {
			return err
		}
		f, err := dir.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		return errors.Join(writeContent(f, content, h.Size), f.Chmod(mode.Perm()|mode&keep), f.Close(),
			ignorePermission(dir.Chtimes(name, h.ModTime, h.ModTime)))
	case tar.TypeSymlink:
		if err := removeFile(dir, name); err != nil {
			return err
		}
		return dir.Symlink(h.Linkname, name)
	case tar.TypeLink:
		if err := removeFile(dir, name); err != nil {
			return err
		}
		return dir.Link(renamed(h.Linkname, rename), name)
	case tar.TypeFifo:
		if keep&fs.ModeSetuid != 0 { // the stranger's own
			return makeFIFO(dir, name, mode)
		}
	case tar.TypeXGlobalHeader:
		return nil
	}
	return fmt.Errorf("%w: a special file (tar type %q) cannot be copied", ErrArchive, h.Typeflag)
}

func makeFIFO(dir *os.Root, name string, mode fs.FileMode) error {
	if err := removeFile(dir, name); err != nil {
		return err
	}
	parent, err := dir.OpenFile(path.Dir(name), os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	defer parent.Close()
	if err := unix.Mkfifoat(int(parent.Fd()), path.Base(name), 0o600); err != nil {
		return &fs.PathError{Op: "mkfifo", Path: name, Err: err}
	}
	return dir.Chmod(name, mode.Perm())
}

// removeFile makes way for a new file; a directory is left alone, and in the way.
func removeFile(dir *os.Root, name string) error {
	err := dir.Remove(name)
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if errors.Is(err, syscall.ENOTEMPTY) || errors.Is(err, syscall.EISDIR) {
		return fmt.Errorf("a directory of that name is there: %w", fs.ErrExist)
	}
	return err
}

func ignorePermission(err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return nil
	}
	return err
}
