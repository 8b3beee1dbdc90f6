// Package format knows the version of the state of a node on disk, without opening it:
// for programs that have to look whether they can read it before they change anything,
// while another one has it open.
package format

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// Version is the version of the state that this program writes. pkg/state has a
// migration for each step to it.
const Version = 1

// ErrTooNew says that a newer subpod wrote the state.
var ErrTooNew = errors.New("the state was written by a newer subpod")

// suffix is that of the file with the version, beside the state.
const suffix = ".version"

// Write notes the version of a state file beside it. Idempotent.
func Write(file string) error {
	if written, err := read(file); err == nil && written == Version {
		return nil
	}
	tmp := file + suffix + ".new"
	if err := os.WriteFile(tmp, []byte(strconv.Itoa(Version)+"\n"), 0o600); err != nil {
		return fmt.Errorf("note the version of the state: %w", err)
	}
	if err := os.Rename(tmp, file+suffix); err != nil {
		return fmt.Errorf("note the version of the state: %w", err)
	}
	return nil
}

// Check returns ErrTooNew for a state file that this program cannot read. One without a
// note that can be read is left to pkg/state, which looks into the file itself.
func Check(file string) error {
	written, err := read(file)
	if err == nil && written > Version {
		return fmt.Errorf("%w: version %d in %s, this one knows %d (install the newer subpod again, or end with this state: subpod system reset)",
			ErrTooNew, written, file, Version)
	}
	return nil
}

// maxNote bounds the file with the version, in bytes.
const maxNote = 20

func read(file string) (int, error) {
	text, err := os.ReadFile(file + suffix)
	if err != nil {
		return 0, fmt.Errorf("read the version of the state: %w", err)
	}
	if len(text) > maxNote {
		return 0, fmt.Errorf("read the version of the state: %s is no number", file+suffix)
	}
	version, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return 0, fmt.Errorf("read the version of the state: %s: %w", file+suffix, err)
	}
	return version, nil
}
