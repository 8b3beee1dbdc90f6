package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	"github.com/subpod/subpod/configs"
)

// maxFile bounds what is read of one file, in bytes.
const maxFile = 1 << 20

// Load reads the default, then file, then the files FILE.d/*.toml in lexical
// order, then overrides: dotted key → value, as flags give them. A later
// setting replaces an earlier one; lists are replaced whole, tables merged.
//
// With file "" the standard places are looked at (see Find), and finding none
// is no error; a file that is named must exist. The result is validated, but its
// paths are not expanded yet: see Resolve.
//
// The error wraps ErrInvalid and is an *Error with all problems when the
// content is at fault; it wraps the cause (fs.ErrNotExist, …) when a file
// cannot be read.
func Load(file string, overrides map[string]string) (*Config, error) {
	files, err := sources(file)
	if err != nil {
		return nil, err
	}
	c := Default()
	var problems []Problem
	for _, f := range files {
		text, err := readFile(f)
		if err != nil {
			return nil, err
		}
		problems = append(problems, c.decode(f, text)...)
	}
	problems = append(problems, c.override(overrides)...)
	if len(problems) == 0 {
		problems = c.Validate()
	}
	if len(problems) > 0 {
		return nil, &Error{Problems: problems}
	}
	return c, nil
}

// Default returns the embedded default configuration.
func Default() *Config {
	c := &Config{origins: origins{}}
	if p := c.decode("", []byte(configs.Default)); len(p) > 0 {
		// The file is compiled in, and a test decodes it: a broken build.
		panic(fmt.Sprintf("embedded default configuration: %v", p))
	}
	c.origins = origins{}
	return c
}

// Find returns the first of the standard places that has a configuration file
// or a drop-in directory: $XDG_CONFIG_HOME/subpod/subpod.toml (that is
// ~/.config when unset), /etc/subpod/subpod.toml. "" when there is none. One that cannot be
// looked at counts as there, and so does a link to nowhere: reading it says why.
func Find(env func(string) string) string {
	var places []string
	if dir, err := Variable("XDG_CONFIG_HOME", env); err == nil {
		places = append(places, filepath.Join(dir, "subpod", "subpod.toml"))
	}
	places = append(places, "/etc/subpod/subpod.toml")
	for _, p := range places {
		for _, candidate := range []string{p, p + ".d"} {
			if _, err := os.Stat(candidate); err == nil || !absent(candidate, err) {
				return p
			}
		}
	}
	return ""
}

// absent reports whether the error of opening a file says that there is none: nothing has its
// name, nor does its path lead over a link to nowhere.
func absent(name string, err error) bool {
	if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR) {
		return false
	}
	for at := name; at != filepath.Dir(at); at = filepath.Dir(at) {
		if _, err := os.Lstat(at); err == nil {
			_, err := os.Stat(at)
			return at != name && err == nil
		}
	}
	return true
}

// sources returns the files to read, in order.
func sources(file string) ([]string, error) {
	named := file != ""
	if !named {
		if file = Find(os.Getenv); file == "" {
			return nil, nil
		}
	}
	files := []string{file}
	if _, err := os.Stat(file); err != nil {
		// Only in a standard place may a drop-in directory stand alone.
		if named || !absent(file, err) {
			return nil, fmt.Errorf("read configuration: %w", err)
		}
		files = nil
	}
	entries, err := os.ReadDir(file + ".d") // sorted by name
	if err != nil && !absent(file+".d", err) {
		return nil, fmt.Errorf("read configuration drop-ins: %w", err)
	}
	for _, e := range entries {
		if filepath.Ext(e.Name()) == ".toml" && !e.IsDir() {
			files = append(files, filepath.Join(file+".d", e.Name()))
		}
	}
	return files, nil
}

// readFile reads a file of at most maxFile bytes. It refuses a FIFO: that may keep its
// reader waiting, and gives its text only once, while servers read it again and again.
func readFile(name string) ([]byte, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err == nil && st.Mode()&fs.ModeNamedPipe != 0 {
		err = fmt.Errorf("%s is a FIFO, not a regular file", name)
	}
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	if len(text) > maxFile {
		return nil, &Error{Problems: []Problem{{File: name, Text: fmt.Sprintf("larger than %d bytes", maxFile)}}}
	}
	return text, nil
}

// override sets single keys from text, as flags give it.
func (c *Config) override(overrides map[string]string) []Problem {
	var problems []Problem
	for _, key := range slices.Sorted(maps.Keys(overrides)) {
		line, err := assignment(key, overrides[key])
		if err != nil {
			problems = append(problems, Problem{File: overrideFile, Key: key, Text: err.Error()})
			continue
		}
		for _, p := range c.decode(overrideFile, []byte(line)) {
			p.Line, p.Column = 0, 0
			if p.Key == "" {
				p.Key = key
			}
			problems = append(problems, p)
		}
	}
	// Where a value came from is the command line, not a line of a text that
	// nobody wrote.
	for key, at := range c.origins {
		if at.File == overrideFile {
			c.origins[key] = Problem{File: overrideFile}
		}
	}
	return problems
}

// overrideFile stands for the file name in problems about overrides.
const overrideFile = "command line"
