package setup

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// file is one that the user is to have.
type file struct {
	path, text string
	// system are directories in which an installation for all users has the same file.
	system []string
}

// record is what was done, for Undo.
type record struct {
	Files  map[string]string `json:"files"` // SHA-256 by path
	Dirs   []string          `json:"dirs,omitempty"`
	Units  []string          `json:"units,omitempty"`
	Linger bool              `json:"linger,omitempty"`
}

func (s Setup) recordFile() string { return filepath.Join(s.StateHome, "subpod", "setup.json") }

func (s Setup) load() (*record, error) {
	r := &record{Files: map[string]string{}}
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
	if err := os.MkdirAll(filepath.Dir(s.recordFile()), 0o700); err != nil {
		return fmt.Errorf("note what is done: %w", err)
	}
	if err := replace(s.recordFile(), append(b, '\n')); err != nil {
		return fmt.Errorf("note what is done: %w", err)
	}
	return nil
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// write brings one file up to date, unless it is the user's.
func (s Setup) write(r *record, f file) error {
	ours := r.Files[f.path]
	if ours == "" && f.inSystem() {
		return nil
	}
	old, err := os.ReadFile(f.path)
	_, link := os.Readlink(f.path)
	switch {
	case err == nil && string(old) == f.text:
		s.say("up to date", "%s", f.path)
		return nil
	case err == nil && (link == nil || digest(old) != ours):
		s.say("kept", "%s, which is yours: it is not as setup would write it", f.path)
		return nil
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("look at %s: %w", f.path, err)
	case link == nil:
		s.say("kept", "%s, which is yours: a link to a file that is not there", f.path)
		return nil
	case s.DryRun:
		s.say("would write", "%s", f.path)
		return nil
	}
	r.Dirs = append(r.Dirs, missingDirs(filepath.Dir(f.path))...)
	r.Files[f.path] = digest([]byte(f.text))
	if err := s.save(r); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(f.path), 0o755); err != nil {
		return fmt.Errorf("make a directory: %w", err)
	}
	if err := replace(f.path, []byte(f.text)); err != nil {
		return fmt.Errorf("write %s: %w", f.path, err)
	}
	s.say("wrote", "%s", f.path)
	return nil
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

// replace writes a file at once: a reader sees all or nothing.
func replace(name string, text []byte) error {
	tmp := name + ".new"
	if err := os.WriteFile(tmp, text, 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, name)
}

// remove takes back the files of the record, and returns those that are the user's by
// now.
func (s Setup) remove(r *record) error {
	paths := make([]string, 0, len(r.Files))
	for path := range r.Files {
		paths = append(paths, path)
	}
	slices.Sort(paths)
	var errs []error
	for _, path := range paths {
		b, err := os.ReadFile(path)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case err != nil:
			errs = append(errs, err)
			continue
		case digest(b) != r.Files[path]:
			s.say("kept", "%s, which was changed since setup wrote it", path)
			continue
		case s.DryRun:
			s.say("would remove", "%s", path)
			continue
		}
		if err := os.Remove(path); err != nil {
			errs = append(errs, err)
			continue
		}
		s.say("removed", "%s", path)
	}
	if !s.DryRun {
		s.removeDirs(r)
	}
	return errors.Join(errs...)
}

// removeDirs removes the directories that setup has made and nothing is in.
func (s Setup) removeDirs(r *record) {
	dirs := slices.Clone(r.Dirs)
	slices.SortFunc(dirs, func(a, b string) int { return len(b) - len(a) })
	for _, dir := range dirs {
		_ = os.Remove(dir) // it fails where something is in it
	}
}
