package storage

import (
	"archive/tar"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// After it has unpacked a layer containers/storage adds up its files, and looks into no
// directory whose name is not UTF-8: it does not take such a layer. The directories of
// one are unpacked under other names, then, and given theirs afterwards.

// rawNamesLine in the list of the layers below asks the helper for other names.
const rawNamesLine = "raw names"

// rawPrefix begins the name of a directory that has another one. Its bytes that are not
// UTF-8 are runes of private use there, from rawByte on.
const (
	rawPrefix = ".subpod-raw-"
	rawByte   = 0xf700
)

// hasRawNames reports whether err is that of a layer with a directory whose name is not
// UTF-8.
func hasRawNames(err error) bool {
	var at *fs.PathError
	return errors.As(err, &at) && at.Op == "readdir" && errors.Is(at, fs.ErrInvalid) && !utf8.ValidString(at.Path)
}

// encodeNames returns a path whose directories have other names where theirs are not
// UTF-8. The last part of it is left, unless it is a directory, too.
func encodeNames(name string, isDir bool) string {
	parts := strings.Split(name, "/")
	for i, part := range parts {
		if (i < len(parts)-1 || isDir) && (!utf8.ValidString(part) || strings.HasPrefix(part, rawPrefix)) {
			parts[i] = encodeName(part)
		}
	}
	return strings.Join(parts, "/")
}

// encoded returns the names of an entry whose directories have other ones, where that is
// asked for.
func (f *layerFilter) encoded(h *tar.Header) (name, link string) {
	name, link = h.Name, h.Linkname
	if f.lowers.rawNames {
		name = encodeNames(name, h.Typeflag == tar.TypeDir)
		if h.Typeflag == tar.TypeLink {
			link = encodeNames(link, false)
		}
	}
	return name, link
}

func encodeName(name string) string {
	var out strings.Builder
	out.WriteString(rawPrefix)
	for len(name) > 0 {
		r, n := utf8.DecodeRuneInString(name)
		if r == utf8.RuneError && n == 1 || r >= rawByte && r < rawByte+256 {
			for _, b := range []byte(name[:n]) {
				out.WriteRune(rawByte + rune(b))
			}
		} else {
			out.WriteString(name[:n])
		}
		name = name[n:]
	}
	return out.String()
}

// decodeName is the reverse of encodeName. A name that was not encoded stays.
func decodeName(name string) string {
	rest, ok := strings.CutPrefix(name, rawPrefix)
	if !ok {
		return name
	}
	var out []byte
	for _, r := range rest {
		if r >= rawByte && r < rawByte+256 {
			out = append(out, byte(r-rawByte))
		} else {
			out = utf8.AppendRune(out, r)
		}
	}
	return string(out)
}

// restoreNames gives the directories below dir, which were unpacked under other names,
// theirs. The times of those that they are in stay.
func restoreNames(dir string) error {
	var found []string
	err := filepath.WalkDir(dir, func(at string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && at != dir && decodeName(d.Name()) != d.Name() {
			found = append(found, at)
		}
		return err
	})
	if err != nil {
		return err
	}
	for _, at := range slices.Backward(found) { // those below first
		parent, name := filepath.Split(at)
		var st unix.Stat_t
		if err := unix.Lstat(parent, &st); err != nil {
			return &os.PathError{Op: "stat", Path: parent, Err: err}
		}
		own := decodeName(name)
		if own == "" || own == "." || own == ".." || strings.ContainsAny(own, "/\x00") {
			return fmt.Errorf("%w: a directory has the name %q", ErrCorrupt, own)
		}
		if err := unix.Renameat2(unix.AT_FDCWD, at, unix.AT_FDCWD, parent+own, unix.RENAME_NOREPLACE); err != nil {
			return &os.LinkError{Op: "rename", Old: at, New: parent + own, Err: err}
		}
		if err := unix.UtimesNanoAt(unix.AT_FDCWD, parent, []unix.Timespec{st.Atim, st.Mtim}, 0); err != nil {
			return &os.PathError{Op: "set the times of", Path: parent, Err: err}
		}
	}
	return nil
}
