package setup

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/cmd/internal/cli"
)

// file is one that the user is to have.
type file struct {
	path, text string
	// system are directories in which an installation for all users has the same file.
	system []string
}

// record is what was done, for Undo.
type record struct {
	Files  map[string]string `json:"files"`            // SHA-256 by path
	Former map[string]string `json:"former,omitempty"` // SHA-256 of what is there until it is replaced
	Dirs   []string          `json:"dirs,omitempty"`
	Units  []string          `json:"units,omitempty"`
	Linger bool              `json:"linger,omitempty"`
}

// wrote reports whether the text at a path is setup's. An update that was broken off has
// noted the new text, and left the former.
func (r *record) wrote(path, text string) bool {
	sum := digest([]byte(text))
	return sum == r.Files[path] || sum == r.Former[path]
}

func (s Setup) recordFile() string { return filepath.Join(s.StateHome, "subpod", "setup.json") }

func (s Setup) load() (*record, error) {
	r := &record{Files: map[string]string{}, Former: map[string]string{}}
	b, err := os.ReadFile(s.recordFile())
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read what setup has done before: %w", err)
	}
	if err := json.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("read what setup has done before: %s: %w (remove the file to begin anew)", s.recordFile(), err)
	}
	if r.Files == nil {
		r.Files = map[string]string{}
	}
	if r.Former == nil {
		r.Former = map[string]string{}
	}
	return r, nil
}

func (s Setup) save(r *record) error {
	if s.DryRun {
		return nil
	}
	b, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return fmt.Errorf("encode the record of setup: %w", err)
	}
	if err := replace(s.recordFile(), string(b)+"\n"); err != nil {
		return fmt.Errorf("note what is done: %w", err)
	}
	return nil
}

// lock keeps other calls of setup out until the function that it returns is called.
// ErrBusy. A dry run changes nothing and needs none.
func (s Setup) lock() (unlock func(), err error) {
	if s.DryRun {
		return func() {}, nil
	}
	dir := filepath.Dir(s.recordFile())
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("note what is done: %w", err)
	}
	f, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("note what is done: %w", err)
	}
	// NFS has no locks for directories: there it goes without.
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		f.Close()
		return nil, fmt.Errorf("%w (it has locked %s)", ErrBusy, dir)
	}
	return func() { f.Close() }, nil
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// found is what is at the path of a file: with text where that is a regular file, or a link to one.
type found struct {
	there, regular bool
	text           string
}

func look(path string) (at found, err error) {
	st, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return found{}, nil
	}
	if err != nil {
		return found{}, err
	}
	at = found{there: true, regular: st.Mode().IsRegular()}
	if st, err = os.Stat(path); err != nil || !st.Mode().IsRegular() {
		return at, nil
	}
	text, err := os.ReadFile(path)
	at.text = string(text)
	return at, err
}

// write brings one file up to date, unless it is the user's.
func (s Setup) write(r *record, f file) error {
	if r.Files[f.path] == "" && f.inSystem() {
		return nil
	}
	at, err := look(f.path)
	switch {
	case err != nil:
		return fmt.Errorf("look at %s: %w", f.path, err)
	case at.there && at.text == f.text:
		s.say("up to date", "%s", f.path)
		return nil
	case at.there && !at.regular:
		s.say("kept", "%s, which is yours: setup does not write to what is not a regular file", f.path)
		return nil
	case at.there && !r.wrote(f.path, at.text):
		s.say("kept", "%s, which is yours: it is not as setup would write it", f.path)
		return nil
	case s.DryRun:
		s.say("would write", "%s", f.path)
		return nil
	}
	r.Dirs = append(r.Dirs, missingDirs(filepath.Dir(f.path))...)
	if at.there {
		r.Former[f.path] = digest([]byte(at.text))
	}
	r.Files[f.path] = digest([]byte(f.text))
	if err := s.save(r); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(f.path), 0o755); err != nil {
		return fmt.Errorf("make a directory: %w", err)
	}
	if err := replace(f.path, f.text); err != nil {
		return fmt.Errorf("write %s: %w", f.path, err)
	}
	s.say("wrote", "%s", f.path)
	if r.Former[f.path] == "" {
		return nil
	}
	delete(r.Former, f.path)
	return s.save(r)
}

// inSystem reports whether all users have the file.
func (f file) inSystem() bool {
	for _, dir := range f.system {
		if dir == "" {
			continue
		}
		if b, err := os.ReadFile(filepath.Join(dir, filepath.Base(f.path))); err == nil && string(b) == f.text {
			return true
		}
	}
	return false
}

// missingDirs lists the directories that MkdirAll would make, the innermost first.
func missingDirs(dir string) (missing []string) {
	for ; ; dir = filepath.Dir(dir) {
		if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
			return missing
		}
		missing = append(missing, dir)
	}
}

// replace writes a file at once, into a directory that is there.
func replace(name, text string) error {
	dir, err := os.OpenRoot(filepath.Dir(name))
	if err != nil {
		return err
	}
	defer dir.Close()
	return cli.ReplaceFile(dir, filepath.Base(name), text, 0o644)
}

// remove takes back the files of the record, and says which are the user's by now. What
// is left in the record could not be removed.
func (s Setup) remove(r *record) error {
	var errs []error
	for _, path := range slices.Sorted(maps.Keys(r.Files)) {
		at, err := look(path)
		switch {
		case err != nil:
			errs = append(errs, err)
			continue
		case !at.there:
		case !at.regular || !r.wrote(path, at.text):
			s.say("kept", "%s, which was changed since setup wrote it", path)
		case s.DryRun:
			s.say("would remove", "%s", path)
		default:
			if err := os.Remove(path); err != nil {
				errs = append(errs, err)
				continue
			}
			s.say("removed", "%s", path)
		}
		delete(r.Files, path)
	}
	if !s.DryRun {
		r.removeDirs()
	}
	return errors.Join(errs...)
}

// removeDirs removes the directories that setup has made and nothing is in.
func (r *record) removeDirs() {
	dirs := slices.Clone(r.Dirs)
	slices.SortFunc(dirs, func(a, b string) int { return len(b) - len(a) })
	for _, dir := range dirs {
		_ = os.Remove(dir) // it fails where something is in it
	}
}
