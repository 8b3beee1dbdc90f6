// Package defences is the list of what subpod does against attacks, each with a change
// of the source that switches it off and the tests that then fail: what shows that the
// attacks of docs/security.md are ones. 'make attack-defences' builds the programs with
// each change, without touching the tree, and runs these tests.
package defences

import (
	"bytes"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/pelletier/go-toml/v2"
)

// Defence is what stops attacks, and how it is switched off.
type Defence struct {
	ID string `toml:"id"`
	// Without says what is not done once it is switched off. Where several layers hold
	// an attack, it names all of them, and Changes switch all of them off.
	Without string `toml:"without"`
	// Package has the Tests: "tests/attack", or that of the defence.
	Package string `toml:"package"`
	// Tests fail without the defence, each by itself, by names as t.Run has them.
	Tests []string `toml:"tests"`
	// Says is in the output of the failing tests: they fail for what they look for, and
	// not because nothing works.
	Says string `toml:"says"`
	// Changes are of the source.
	Changes []Change `toml:"change"`
}

// Change replaces a text that stands exactly once in a file.
type Change struct {
	File string `toml:"file"` // relative to the root of the tree
	Old  string `toml:"old"`
	New  string `toml:"new"`
}

//go:embed *.toml
var lists embed.FS

// Load returns all defences, in the order of the files' names.
func Load() ([]Defence, error) {
	files, err := lists.ReadDir(".")
	if err != nil {
		return nil, err
	}
	var all []Defence
	known := map[string]bool{}
	for _, f := range files {
		b, err := lists.ReadFile(f.Name())
		if err != nil {
			return nil, err
		}
		var list struct {
			Defences []Defence `toml:"defence"`
		}
		dec := toml.NewDecoder(bytes.NewReader(b))
		if err := dec.DisallowUnknownFields().Decode(&list); err != nil {
			return nil, fmt.Errorf("%s: %w", f.Name(), err)
		}
		for _, d := range list.Defences {
			if err := d.check(); err != nil {
				return nil, fmt.Errorf("%s: defence %q: %w", f.Name(), d.ID, err)
			}
			if known[d.ID] {
				return nil, fmt.Errorf("%s: defence %q is there twice", f.Name(), d.ID)
			}
			known[d.ID] = true
		}
		all = append(all, list.Defences...)
	}
	return all, nil
}

func (d Defence) check() error {
	if d.ID == "" || d.Without == "" || d.Package == "" || d.Says == "" || len(d.Tests) == 0 || len(d.Changes) == 0 {
		return errors.New("id, without, package, tests, says and a change are needed")
	}
	return nil
}

// Apply returns the changed content of each file that d changes, by its path relative to
// root. A text that is not there exactly once is an error.
func (d Defence) Apply(root string) (map[string]string, error) {
	out := map[string]string{}
	for _, c := range d.Changes {
		text, ok := out[c.File]
		if !ok {
			b, err := os.ReadFile(filepath.Join(root, c.File))
			if err != nil {
				return nil, err
			}
			text = string(b)
		}
		if n := strings.Count(text, c.Old); n != 1 {
			return nil, fmt.Errorf("%s has the text that %s changes %d times, want once: %q", c.File, d.ID, n, c.Old)
		}
		if c.Old == c.New {
			return nil, fmt.Errorf("%s changes nothing in %s", d.ID, c.File)
		}
		out[c.File] = strings.Replace(text, c.Old, c.New, 1)
	}
	return out, nil
}

// Overlay writes the changed files to dir, and there overlay.json, which go build
// -overlay takes. root is absolute.
func (d Defence) Overlay(root, dir string) (name string, err error) {
	changed, err := d.Apply(root)
	if err != nil {
		return "", err
	}
	replace := map[string]string{}
	for file, text := range changed {
		// No name that makes dir a package: the dir of a run that was killed stays in the tree.
		to := filepath.Join(dir, strings.ReplaceAll(file, "/", "_")+".changed")
		if err := os.WriteFile(to, []byte(text), 0o600); err != nil {
			return "", err
		}
		replace[filepath.Join(root, file)] = to
	}
	b, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	name = filepath.Join(dir, "overlay.json")
	return name, os.WriteFile(name, b, 0o600)
}
