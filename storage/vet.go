package storage

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/pkg/openat2"
	"github.com/subpod/subpod/pkg/tree"
)

// A content process writes the store's files, and may have been taken over by what it
// read. What it leaves is looked at here before the server, or containers/storage in it,
// goes by it: names of directories that are removed, lists that are read whole, files
// that are opened by name.

// Bounds of what is read of the store's own files.
const (
	maxIndex   = 256 << 20 // a list of layers or images: about 1 KiB for each
	maxBigData = 16 << 20  // a manifest, configuration or signature
	maxSmall   = 64 << 10  // a name, or a flag
)

// indexes are containers/storage's lists of what is in the store. One that cannot be
// read would keep it from opening.
var indexes = []string{"overlay-layers/layers.json", "overlay-layers/volatile-layers.json", "overlay-images/images.json",
	"vfs-layers/layers.json", "vfs-layers/volatile-layers.json", "vfs-images/images.json"}

// indexEntry is what names directories in a list.
type indexEntry struct {
	ID     string   `json:"id"`
	Parent string   `json:"parent"`
	Layer  string   `json:"layer"`
	Mapped []string `json:"mapped-layers"`
}

// errNotPlain means that something else is in the place of a regular file.
var errNotPlain = errors.New("it is no regular file")

// openVetted opens a regular file of at most limit bytes for reading. A link, FIFO or device
// in its place is neither followed nor waited for.
func openVetted(path string, limit int64) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	switch {
	case err != nil:
	case !st.Mode().IsRegular():
		err = fmt.Errorf("read %s: %w", path, errNotPlain)
	case st.Size() > limit:
		err = fmt.Errorf("read %s: it has %d bytes, more than %d", path, st.Size(), limit)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// readVetted reads what openVetted opens.
func readVetted(path string, limit int64) ([]byte, error) {
	f, err := openVetted(path, limit)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, limit))
}

// vetted remembers the lists that have been looked at.
type vetted struct {
	mu    sync.Mutex
	known map[string]unix.Stat_t
}

// vet looks at what containers/storage reads by itself. Lists that are damaged (by a disk
// that lost what it had confirmed), or that nobody honest has written, are moved away: the
// images in them are pulled again when they are needed; what is left of them on the disk is
// removed as of no image. ErrNotUsable.
func (l *layerStore) vet() error {
	l.vetted.mu.Lock()
	defer l.vetted.mu.Unlock()
	errs := vetOverlay(l)
	for _, name := range indexes {
		errs = errors.Join(errs, vetIndex(l, filepath.Join(l.opts.Root, name)))
	}
	for _, name := range []string{"mountpoints.json", "volatile-layers.json"} {
		for _, driver := range []string{"overlay", "vfs"} {
			errs = errors.Join(errs, vetIndex(l, filepath.Join(l.opts.RunRoot, driver+"-layers", name)))
		}
	}
	if errs != nil {
		return fmt.Errorf("%w: %w", ErrNotUsable, errs)
	}
	return nil
}

// vetIndex looks at one list, if it has changed, and moves it away where it is bad.
func vetIndex(l *layerStore, path string) error {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil
	} else if err != nil {
		return &fs.PathError{Op: "lstat", Path: path, Err: err}
	}
	if known, ok := l.vetted.known[path]; ok && known.Ino == st.Ino && known.Size == st.Size && known.Ctim == st.Ctim {
		return nil
	}
	why := checkIndex(path)
	if errors.Is(why, fs.ErrPermission) {
		return why
	}
	if why == nil {
		if l.vetted.known == nil {
			l.vetted.known = map[string]unix.Stat_t{}
		}
		l.vetted.known[path] = st
		return nil
	}
	aside := path + ".damaged-" + time.Now().UTC().Format("20060102T150405.000")
	if err := os.Rename(path, aside); err != nil {
		return err
	}
	l.log.Error("the store's list was damaged: images in it must be pulled again", "file", path, "kept_as", aside, "error", why)
	return nil
}

// checkIndex returns what is wrong with a list.
func checkIndex(path string) error {
	data, err := readVetted(path, maxIndex)
	if err != nil || len(data) == 0 {
		return err
	}
	var entries []indexEntry
	if err := json.Unmarshal(data, &entries); err != nil {
		return err
	}
	for _, e := range entries {
		for _, id := range append(e.Mapped, e.ID, e.Parent, e.Layer) {
			if id != "" && !fullID().MatchString(id) {
				return fmt.Errorf("%.100q is no ID", id)
			}
		}
		if e.ID == "" {
			return errors.New("an entry has no ID")
		}
	}
	return nil
}

// vetOverlay removes what is not what the overlay driver makes, in the places where it
// looks.
func vetOverlay(l *layerStore) error {
	var errs error
	for _, name := range []string{"l", "staging", "tempdirs"} {
		dir := filepath.Join(l.dirs.overlay(), name)
		if st, err := os.Lstat(dir); err == nil && !st.IsDir() {
			l.log.Error("something else is in the place of a directory of the store, and is removed", "path", dir, "mode", st.Mode())
			errs = errors.Join(errs, os.Remove(dir))
		}
	}
	flags, _ := filepath.Glob(filepath.Join(l.opts.RunRoot, "overlay", "*"))
	for _, path := range append(flags, filepath.Join(l.dirs.overlay(), hasMountProgram)) {
		st, err := os.Lstat(path)
		if err == nil && !st.IsDir() && (!st.Mode().IsRegular() || st.Size() > maxSmall) {
			l.log.Error("something else is in the place of a file of the store, and is removed", "path", path, "mode", st.Mode(), "size", st.Size())
			errs = errors.Join(errs, os.Remove(path))
		}
	}
	return errs
}

// hasMountProgram is the overlay driver's flag for layers that are unpacked for
// fuse-overlayfs.
const hasMountProgram = ".has-mount-program"

// shortID is the name of a link to a layer.
var shortID = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^[0-9A-Z]{26}$`)
})

// linkOf returns the short name that a layer's directory notes, "" for none.
func linkOf(dir string) string {
	link, err := readVetted(filepath.Join(dir, "link"), maxSmall)
	if err != nil || !shortID().Match(link) {
		return ""
	}
	return string(link)
}

// vetLayer makes a layer's directory one that the overlay driver can remove: it removes
// what the file "link" in it names, wherever that is.
func (l *layerStore) vetLayer(id string) error {
	if l.driver.name == DriverVFS {
		return nil
	}
	dir := filepath.Join(l.dirs.overlay(), id)
	var errs error
	for _, name := range vettedNames {
		if name == "link" && linkOf(dir) != "" {
			continue
		}
		at, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil // no directory: then it is a link that is removed
		}
		err = unix.Unlinkat(at, name, 0)
		if errors.Is(err, unix.EISDIR) || errors.Is(err, unix.EPERM) {
			err = tree.RemoveAll(filepath.Join(dir, name))
		}
		unix.Close(at)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = errors.Join(errs, &fs.PathError{Op: "remove", Path: filepath.Join(dir, name), Err: err})
		}
	}
	return errs
}

// vetLayers is vetLayer for a layer and those below it.
func (l *layerStore) vetLayers(top string) error {
	var errs error
	for id := top; id != ""; {
		if !fullID().MatchString(id) {
			return fmt.Errorf("%w: %.100q is no ID of a layer", ErrCorrupt, id)
		}
		errs = errors.Join(errs, l.vetLayer(id))
		layer, err := l.cs.Layer(id)
		if err != nil {
			break
		}
		id = layer.Parent
	}
	return errs
}

// openLayer opens (O_PATH) the directory with the files of a layer: a real one, in the store
// that the layer is in. ErrCorrupt where something else is in its place.
func (l *layerStore) openLayer(id string) (*os.File, error) {
	dir := l.diffDir(id)
	above, name := filepath.Dir(filepath.Dir(dir)), filepath.Join(id, "diff")
	if l.driver.name == DriverVFS {
		above, name = filepath.Dir(dir), id
	}
	at, err := unix.Open(above, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: above, Err: err}
	}
	defer unix.Close(at)
	fd, err := openat2.NoLinks(at, name, unix.O_PATH|unix.O_DIRECTORY)
	if errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOTDIR) {
		return nil, fmt.Errorf("%w: something else is in the place of layer %s: %w; remove the image and pull it again", ErrCorrupt, id, err)
	}
	if err != nil {
		return nil, fmt.Errorf("open layer %s: %w", id, err)
	}
	return os.NewFile(uintptr(fd), dir), nil
}

// vetImage looks at the files that containers/storage has for an image, which it reads
// whole.
func (l *layerStore) vetImage(id string) error {
	if !fullID().MatchString(id) {
		return fmt.Errorf("%w: %.100q is no ID of an image", ErrCorrupt, id)
	}
	dir, err := os.OpenFile(l.imageDir(id), os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // of an additional store
	}
	if err != nil {
		return fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	defer dir.Close()
	entries, err := dir.Readdir(-1)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !e.Mode().IsRegular() || e.Size() > maxBigData {
			return fmt.Errorf("%w: %s of image %s is no file that a pull writes (mode %v, %d bytes)", ErrCorrupt, e.Name(), id, e.Mode(), e.Size())
		}
	}
	return nil
}
