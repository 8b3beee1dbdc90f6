package storage

import (
	"archive/tar"
	"bufio"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// layerFilter rewrites the tar stream of a layer into one that containers/storage
// unpacks to what the OCI image specification says, with any driver:
//
//   - A whiteout hides what is below the layer and nothing in it, wherever in the stream
//     it is: it goes to the end, and is left out, or becomes an opaque marker in the
//     new directory, where the layer has a file of the name itself.
//   - What is to be put below a symbolic link of a lower layer is put where that leads,
//     and directories that the stream takes for granted are as the lower layers have them.
//   - A hard link to a file of a lower layer brings that file along.
//   - Sparse files of GNU tar and types that POSIX says to take for files are files.
//   - Attributes by which overlays mark their own files are no attributes of an image.
//
// Other entries pass unchanged, byte by byte.
type layerFilter struct {
	// splice, if set, passes bytes on from what in reads to what out writes, beside these.
	splice func(n int64) error
	raw    *rawReader
	in     *tar.Reader
	out    *bufio.Writer
	lowers *lowers
	// root is called for the entry of the root directory.
	root func() error
	// fits, if set, returns an error for an entry whose attributes cannot be stored.
	fits func(*tar.Header) error

	seed    maphash.Seed
	seen    map[uint64]entryKind // by path, of what the layer has so far
	hidden  map[uint64]bool      // paths at which the layer hides what is below it
	opaque  map[uint64]bool      // directories in which it does
	removed []string             // whiteouts
	size    int                  // of removed, in bytes
	parent  string               // of the last entry that was put where it says
}

// entryKind says what the layer has at a path; the zero value is nothing.
type entryKind uint8

const (
	absent entryKind = iota
	directory
	symlink
	otherFile
	device // left out when it is unpacked
)

// maxHeader bounds the headers of one entry, maxRemoved the paths of all whiteouts, and
// maxLinks the symbolic links that lead to one file.
const (
	maxHeader  = 8 << 20
	maxRemoved = 64 << 20
	maxLinks   = 40
)

// gnuDumpDir is the type of a directory in an incremental archive of GNU tar; its body is a
// list of names.
const gnuDumpDir = 'D'

// noID takes the place of a user or group ID that is none: chown(2) would take it for
// another one, most often root's, or change nothing. No user namespace of ours has it.
const noID = 1<<32 - 2

// isID reports whether a user or group ID is one.
func isID(id int) bool { return id >= 0 && id <= noID }

// filterBuffer is the size of the buffers of a layerFilter, in bytes.
const filterBuffer = 256 << 10

func newLayerFilter(in io.Reader, out io.Writer, l *lowers, root func() error) *layerFilter {
	raw := &rawReader{r: bufio.NewReaderSize(in, filterBuffer)}
	return &layerFilter{raw: raw, in: tar.NewReader(raw), out: bufio.NewWriterSize(out, filterBuffer), lowers: l, root: root,
		seed: maphash.MakeSeed(), seen: map[uint64]entryKind{}, hidden: map[uint64]bool{}, opaque: map[uint64]bool{}}
}

// run filters the whole stream.
func (f *layerFilter) run() error {
	for {
		header, h, err := f.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if err := f.entry(header, h); err != nil {
			return fmt.Errorf("%.200q: %w", h.Name, err)
		}
		// What is left of the body is read here, since next records what it reads.
		if _, err := io.Copy(io.Discard, f.in); err != nil {
			return err
		}
	}
	if err := f.whiteouts(); err != nil {
		return err
	}
	if err := tar.NewWriter(f.out).Close(); err != nil {
		return err
	}
	if err := f.out.Flush(); err != nil {
		return err
	}
	_, err := io.Copy(io.Discard, f.raw.r) // padding
	return err
}

// next returns the next entry, and its headers as they are in the stream.
func (f *layerFilter) next() ([]byte, *tar.Header, error) {
	pad := int(-f.raw.body & 511)
	f.raw.record, f.raw.recording = f.raw.record[:0], true
	h, err := f.in.Next()
	f.raw.recording, f.raw.body = false, 0
	if err != nil {
		return nil, nil, err
	}
	return f.raw.record[pad:], h, nil
}

// rawReader records what is read, or counts it.
type rawReader struct {
	r         *bufio.Reader
	recording bool
	record    []byte
	body      int64
	passed    int64 // bytes of the body that nobody looks at any more: they went another way
}

func (r *rawReader) Read(p []byte) (int, error) {
	if r.passed > 0 {
		n := min(int64(len(p)), r.passed)
		r.passed -= n
		r.body += n
		return int(n), nil
	}
	n, err := r.r.Read(p)
	if !r.recording {
		r.body += int64(n)
		return n, err
	}
	if len(r.record)+n > maxHeader {
		return 0, errors.New("archive/tar: the headers of an entry are too large")
	}
	r.record = append(r.record, p[:n]...)
	return n, err
}

// entry passes one entry on.
func (f *layerFilter) entry(header []byte, h *tar.Header) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return f.pass(header, h)
	}
	name := cleanName(h.Name)
	base := path.Base(name)
	switch {
	case name == "":
		if h.Typeflag == tar.TypeDir || h.Typeflag == gnuDumpDir {
			if err := f.root(); err != nil {
				return err
			}
		}
	case base == opaqueMarker:
		return f.opaqueDir(path.Dir(name))
	case strings.HasPrefix(base, whiteoutPrefix):
		return f.whiteout(path.Dir(name), strings.TrimPrefix(base, whiteoutPrefix))
	case strings.Contains("/"+name, "/"+whiteoutPrefix+whiteoutPrefix):
		return nil // metadata of AUFS
	}
	changed, kept := f.plain(h)
	if !kept {
		return nil
	}
	if f.fits != nil {
		if err := f.fits(h); err != nil {
			return err
		}
	}
	if name != "" {
		at, err := f.place(name, true)
		if err != nil {
			return err
		}
		if at != name {
			h.Name, changed = at, true
		}
		if h.Typeflag == tar.TypeLink {
			target, err := f.linkTarget(h.Linkname)
			if err != nil {
				return err
			}
			if f.seen[f.hash(target)] == device {
				f.seen[f.hash(at)] = device
				return nil
			}
			if target != cleanName(h.Linkname) {
				h.Linkname, changed = target, true
			}
		}
		f.seen[f.hash(at)] = kindOf(h.Typeflag)
	}
	if name, link := f.encoded(h); !changed && name == h.Name && link == h.Linkname {
		return f.pass(header, h)
	}
	return f.emit(h, f.in)
}

// cleanName returns a path below the root directory, "" for that itself.
func cleanName(name string) string { return strings.TrimPrefix(path.Clean("/"+name), "/") }

func kindOf(typeflag byte) entryKind {
	switch typeflag {
	case tar.TypeDir:
		return directory
	case tar.TypeSymlink:
		return symlink
	case tar.TypeChar, tar.TypeBlock:
		return device
	}
	return otherFile
}

// plain makes an entry one that containers/storage knows, and reports whether it is
// another now and whether it is to be kept at all.
func (f *layerFilter) plain(h *tar.Header) (changed, kept bool) {
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeLink, tar.TypeSymlink, tar.TypeChar, tar.TypeBlock, tar.TypeDir, tar.TypeFifo:
	case gnuDumpDir:
		h.Typeflag, changed = tar.TypeDir, true
	case 'V', 'M', 'N': // GNU tar's label of a volume, part of a file, old long names
		return false, false
	default:
		h.Typeflag, changed = tar.TypeReg, true
	}
	for _, id := range []*int{&h.Uid, &h.Gid} {
		if !isID(*id) {
			*id, changed = noID, true
		}
	}
	h.Xattrs = nil //lint:ignore SA1019 the reader fills it in beside PAXRecords, and the writer writes both
	n := len(h.PAXRecords)
	maps.DeleteFunc(h.PAXRecords, func(key, _ string) bool {
		attr, ok := strings.CutPrefix(key, paxXattr)
		return strings.HasPrefix(key, "GNU.sparse.") || ok && ofOverlays(attr)
	})
	return changed || len(h.PAXRecords) < n, true
}

const paxXattr = "SCHILY.xattr."

// ofOverlays reports whether overlays, or containers/storage, give an extended
// attribute a meaning of their own.
func ofOverlays(attr string) bool {
	for _, prefix := range []string{"user.overlay.", "trusted.overlay.", "user.fuseoverlayfs.", "security.fuseoverlayfs.", "trusted.fuseoverlayfs.",
		"user.containers.", "security.containers.", rootXattr} {
		if strings.HasPrefix(attr, prefix) {
			return true
		}
	}
	return false
}

// pass writes an entry as it is.
func (f *layerFilter) pass(header []byte, h *tar.Header) error {
	if _, err := f.out.Write(header); err != nil {
		return err
	}
	n, err := h.Size, error(nil)
	if h.Typeflag == tar.TypeReg && h.Size > filterBuffer && f.splice != nil {
		err = f.passUnread(h.Size)
	} else {
		n, err = io.Copy(f.out, f.in)
	}
	if err != nil {
		return err
	}
	_, err = f.out.Write(make([]byte, -n&511))
	return err
}

// emit writes an entry of our own.
func (f *layerFilter) emit(h *tar.Header, body io.Reader) error {
	h.Name, h.Linkname = f.encoded(h)
	h.Format = tar.FormatPAX
	if h.Typeflag != tar.TypeReg {
		h.Size = 0
	}
	w := tar.NewWriter(f.out)
	if err := w.WriteHeader(h); err != nil {
		return err
	}
	if h.Size > 0 {
		if _, err := io.Copy(w, body); err != nil {
			return err
		}
	}
	return w.Flush()
}

func (f *layerFilter) hash(name string) uint64 { return maphash.String(f.seed, name) }

// place returns where the file with this name belongs: its directories may be links of
// lower layers. With fill those that the layer has not named are written, as the lower
// layers have them.
func (f *layerFilter) place(name string, fill bool) (string, error) {
	if dir, base := path.Split(name); dir == "" || dir == f.parent {
		return dir + base, nil
	}
	rest, at := strings.Split(name, "/"), ""
	for links := 0; len(rest) > 1; {
		element := rest[0]
		rest = rest[1:]
		if element == "" || element == "." {
			continue
		}
		if element == ".." {
			at = cleanName(path.Dir(at))
			continue
		}
		next := path.Join(at, element)
		switch kind := f.seen[f.hash(next)]; kind {
		case directory:
			at = next
			continue
		case symlink, otherFile, device: // of this layer: followed, or refused, when it is unpacked
			return path.Join(next, path.Join(rest...)), nil
		}
		below, err := f.below(next)
		if err != nil {
			return "", err
		}
		if below.is(unix.S_IFLNK) {
			if links++; links > maxLinks {
				return "", unix.ELOOP
			}
			target, err := below.readlink()
			if err != nil {
				return "", err
			}
			if path.IsAbs(target) {
				at = ""
			}
			rest = append(strings.Split(target, "/"), rest...)
			continue
		}
		at = next
		if fill {
			if err := f.directory(next, below); err != nil {
				return "", err
			}
		}
	}
	last := path.Join(at, rest[0])
	if fill && last == name {
		f.parent, _ = path.Split(name)
	}
	return last, nil
}

// below returns what lower layers show at a path, as far as this one lets it be seen.
func (f *layerFilter) below(name string) (*lowerFile, error) {
	if f.hidden[f.hash(name)] {
		return nil, nil
	}
	return f.removable(name)
}

// removable is below for a path that this layer may remove itself.
func (f *layerFilter) removable(name string) (*lowerFile, error) {
	for at := name; at != "."; {
		at = path.Dir(at)
		if h := f.hash(at); f.hidden[h] || f.opaque[h] {
			return nil, nil
		}
	}
	return f.lowers.lookup(name)
}

// directory writes a directory that the stream takes for granted.
func (f *layerFilter) directory(name string, below *lowerFile) error {
	h := &tar.Header{Name: name, Typeflag: tar.TypeDir, Mode: 0o755, ModTime: time.Unix(0, 0)}
	if below.is(unix.S_IFDIR) {
		var err error
		if h, err = below.header(name); err != nil {
			return err
		}
	}
	f.seen[f.hash(name)] = directory
	return f.emit(h, nil)
}

// opaqueDir hides what lower layers have in a directory.
func (f *layerFilter) opaqueDir(dir string) error {
	if dir == "." { // no overlay knows an opaque root directory
		names, err := f.lowers.names()
		for _, name := range names {
			f.hidden[f.hash(name)] = true
		}
		f.removed = append(f.removed, names...)
		return err
	}
	marker, err := f.place(path.Join(dir, opaqueMarker), true)
	if err != nil {
		return err
	}
	f.opaque[f.hash(path.Dir(marker))] = true
	return f.emit(&tar.Header{Name: marker, Typeflag: tar.TypeReg, ModTime: time.Unix(0, 0)}, nil)
}

// whiteout notes that the layer removes a name. Names that cannot be in a directory, and
// the metadata of AUFS, remove nothing.
func (f *layerFilter) whiteout(dir, name string) error {
	if name == "" || name == "." || name == ".." || strings.HasPrefix(name, whiteoutPrefix) {
		return nil
	}
	at, err := f.place(path.Join(dir, name), false)
	if err != nil {
		return err
	}
	f.hidden[f.hash(at)] = true
	f.removed = append(f.removed, at)
	if f.size += len(at); f.size > maxRemoved {
		return errors.New("archive/tar: too many whiteouts")
	}
	return nil
}

// whiteouts writes the whiteouts: after all that could take their place.
func (f *layerFilter) whiteouts() error {
	slices.Sort(f.removed)
	for _, name := range slices.Compact(f.removed) {
		// A whiteout of nothing would be seen in a directory that no lower layer has.
		below, err := f.removable(name)
		if err != nil {
			return err
		}
		if below == nil {
			continue
		}
		marker := path.Join(path.Dir(name), whiteoutPrefix+path.Base(name))
		switch f.seen[f.hash(name)] {
		case directory:
			marker = path.Join(name, opaqueMarker)
		case symlink, otherFile, device:
			continue
		default:
			if f.inFile(name) {
				continue
			}
			if _, err := f.place(name, true); err != nil {
				return err
			}
		}
		if err := f.emit(&tar.Header{Name: marker, Typeflag: tar.TypeReg, ModTime: time.Unix(0, 0)}, nil); err != nil {
			return err
		}
	}
	return nil
}

// inFile reports whether something above a path is no directory in this layer.
func (f *layerFilter) inFile(name string) bool {
	for at := path.Dir(name); at != "."; at = path.Dir(at) {
		if kind := f.seen[f.hash(at)]; kind == symlink || kind == otherFile || kind == device {
			return true
		}
	}
	return false
}
