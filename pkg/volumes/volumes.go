// Package volumes keeps named volumes: directories that outlive the containers that mount
// them. They are in the data directory, and their files belong to the users of
// containers, so the server does what changes them.
package volumes

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/pkg/errclass"
	"github.com/subpod/subpod/pkg/tree"
)

var (
	// ErrNotFound says that there is no volume of that name.
	ErrNotFound = errclass.New(errdefs.ErrNotFound, "no such volume")
	// ErrExists says that there is a volume of that name.
	ErrExists = errclass.New(errdefs.ErrAlreadyExists, "the volume exists")
	// ErrName says that a name cannot be one of a volume.
	ErrName = errclass.New(errdefs.ErrInvalidArgument, "invalid name of a volume")
)

// infoDir holds what is known of the volumes beside their content. No volume has a name
// that begins with a dot.
const infoDir = ".info"

// Volume is a named volume.
type Volume struct {
	Name    string            `json:"name"`
	Path    string            `json:"path"`
	Labels  map[string]string `json:"labels"`
	Created time.Time         `json:"created"`
}

// Store keeps volumes below Dir. Its methods may be called concurrently.
type Store struct {
	Dir string

	mu    sync.Mutex
	locks map[string]*sync.Mutex // by name: held while a volume is made, filled or removed
}

// lock takes the lock of one volume.
func (s *Store) lock(name string) (unlock func()) {
	s.mu.Lock()
	l := s.locks[name]
	if l == nil {
		if s.locks == nil {
			s.locks = map[string]*sync.Mutex{}
		}
		l = &sync.Mutex{}
		s.locks[name] = l
	}
	s.mu.Unlock()
	l.Lock()
	return l.Unlock
}

// CheckName returns an error unless name can be one of a volume. ErrName.
func CheckName(name string) error {
	const marks = "_.-"
	letters := "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789" + marks
	if name == "" || len(name) > 255 || strings.Trim(name, letters) != "" || strings.TrimLeft(name, marks) != name {
		return fmt.Errorf("%w: %.80q: expected letters, digits, '_', '.' and '-', beginning with a letter or digit", ErrName, name)
	}
	return nil
}

func (s *Store) path(name string) string { return filepath.Join(s.Dir, name) }
func (s *Store) info(name string) string { return filepath.Join(s.Dir, infoDir, name+".json") }

// Create makes a volume. ErrExists, ErrName.
func (s *Store) Create(name string, labels map[string]string) (Volume, error) {
	if err := CheckName(name); err != nil {
		return Volume{}, err
	}
	defer s.lock(name)()
	return s.create(name, labels)
}

// create makes a volume under its lock.
func (s *Store) create(name string, labels map[string]string) (Volume, error) {
	if err := os.MkdirAll(s.Dir, 0o711); err != nil {
		return Volume{}, err
	}
	if _, err := os.Lstat(s.path(name)); err == nil {
		return Volume{}, fmt.Errorf("%w: %s", ErrExists, name)
	}
	v := Volume{Name: name, Labels: labels, Created: time.Now()}
	if err := s.writeInfo(v); err != nil {
		return Volume{}, err
	}
	if err := os.Mkdir(s.path(name), 0o755); err != nil {
		_ = os.Remove(s.info(name))
		return Volume{}, err
	}
	return s.get(name)
}

func (s *Store) writeInfo(v Volume) error {
	if err := os.MkdirAll(filepath.Join(s.Dir, infoDir), 0o700); err != nil {
		return err
	}
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if err := os.WriteFile(s.info(v.Name), text, 0o600); err != nil {
		_ = os.Remove(s.info(v.Name))
		return fmt.Errorf("record the volume: %w", err)
	}
	return nil
}

// Get returns a volume. ErrNotFound, ErrName.
func (s *Store) Get(name string) (Volume, error) {
	if err := CheckName(name); err != nil {
		return Volume{}, err
	}
	return s.get(name)
}

// get also knows volumes that earlier versions and "play" have made: directories alone.
func (s *Store) get(name string) (Volume, error) {
	st, err := os.Lstat(s.path(name))
	if errors.Is(err, fs.ErrNotExist) || err == nil && !st.IsDir() {
		return Volume{}, fmt.Errorf("%w: %s", ErrNotFound, name)
	}
	if err != nil {
		return Volume{}, err
	}
	v := Volume{Created: st.ModTime()}
	if text, err := os.ReadFile(s.info(name)); err == nil {
		_ = json.Unmarshal(text, &v) // what cannot be read is as if it were not there
	}
	v.Name, v.Path = name, s.path(name)
	if v.Labels == nil {
		v.Labels = map[string]string{}
	}
	return v, nil
}

// List returns all volumes by name.
func (s *Store) List() ([]Volume, error) {
	entries, err := os.ReadDir(s.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return []Volume{}, nil
	}
	out := []Volume{}
	for _, e := range entries {
		if v, err := s.Get(e.Name()); err == nil {
			out = append(out, v)
		}
	}
	return out, err
}

// Remove removes a volume and its content. ErrNotFound, ErrName.
func (s *Store) Remove(name string) error {
	if _, err := s.Get(name); err != nil {
		return err
	}
	defer s.lock(name)()
	if err := tree.RemoveAll(s.path(name)); err != nil {
		return fmt.Errorf("remove volume %s: %w", name, err)
	}
	_ = os.Remove(s.info(name)) // it says nothing without the volume
	return nil
}

// Fill makes a volume where it is missing, and where it is empty, which a new one is,
// calls copy with a path at which it is to make the content: a directory, or nothing.
// On an error, what copy has made is removed. ErrName.
func (s *Store) Fill(name string, copy func(path string) error) error {
	if err := CheckName(name); err != nil {
		return err
	}
	defer s.lock(name)()
	if _, err := s.create(name, nil); err != nil && !errors.Is(err, ErrExists) {
		return err
	}
	dir := s.path(name)
	if copy == nil || !isEmpty(dir) {
		return nil
	}
	// Beside the volume, so that it stays empty when the disk is full. The directory itself
	// stays: a container may have it mounted.
	tmp := filepath.Join(s.Dir, infoDir, "fill-"+name)
	err := tree.RemoveAll(tmp)
	if err == nil {
		err = copy(tmp)
	}
	if err == nil {
		err = moveInto(tmp, dir)
	}
	return errors.Join(err, tree.RemoveAll(tmp))
}

// moveInto moves what is in from to the empty directory into, and gives that the owner
// and mode of from. Nothing is done where from is missing.
func moveInto(from, into string) error {
	var st unix.Stat_t
	err := unix.Lstat(from, &st)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err == nil {
		err = merge(from, into)
	}
	if err == nil {
		err = unix.Lchown(into, int(st.Uid), int(st.Gid))
	}
	if err == nil {
		err = unix.Chmod(into, st.Mode&0o7777)
	}
	return err
}

// isEmpty reports whether a directory has nothing in it, or is not there.
func isEmpty(dir string) bool {
	f, err := os.Open(dir)
	if err != nil {
		return errors.Is(err, fs.ErrNotExist)
	}
	defer f.Close()
	_, err = f.Readdirnames(1)
	return err == io.EOF
}

// Export writes a volume's content as a tar stream. ErrNotFound, ErrName.
func (s *Store) Export(_ context.Context, name string, w io.Writer) error {
	if _, err := s.Get(name); err != nil {
		return err
	}
	root, err := os.Open(s.path(name))
	if err != nil {
		return err
	}
	defer root.Close()
	place, err := tree.At(root, "/")
	if err != nil {
		return err
	}
	defer place.Close()
	return tree.PackAs(place, ".", w)
}

// Import adds the content of a tar stream to a volume. On an error the volume is as it
// was before. ErrNotFound, ErrName.
func (s *Store) Import(ctx context.Context, name string, r io.Reader) error {
	if _, err := s.Get(name); err != nil {
		return err
	}
	parent := filepath.Join(s.Dir, infoDir)
	if err := os.MkdirAll(parent, 0o700); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(parent, "import-")
	if err != nil {
		return err
	}
	defer tree.RemoveAll(tmp)
	into, err := os.OpenRoot(tmp)
	if err != nil {
		return err
	}
	defer into.Close()
	if err := tree.UnpackOwned(ctx, into, "", r); err != nil {
		return fmt.Errorf("import into volume %s: %w", name, err)
	}
	defer s.lock(name)()
	if err := merge(tmp, s.path(name)); err != nil {
		return fmt.Errorf("import into volume %s: %w", name, err)
	}
	return nil
}

// Clear removes what a server that was killed has left of a content that it was making.
func (s *Store) Clear() error {
	entries, err := os.ReadDir(filepath.Join(s.Dir, infoDir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	left := slices.DeleteFunc(entries, func(e fs.DirEntry) bool { return !e.IsDir() })
	errs := []error{err}
	for _, e := range left {
		errs = append(errs, tree.RemoveAll(filepath.Join(s.Dir, infoDir, e.Name())))
	}
	return errors.Join(errs...)
}
