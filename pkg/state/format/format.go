// Package format knows the version of the state of a node on disk, without opening it:
// for programs that have to look whether they can read it before they change anything,
// while another one has it open.
package format

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"syscall"
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
	err := os.Remove(tmp) // one that was not finished: it is not written to, whatever it is
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		err = writeNew(tmp, strconv.Itoa(Version)+"\n")
	}
	if err == nil {
		err = os.Rename(tmp, file+suffix)
	}
	if err != nil {
		return fmt.Errorf("note the version of the state: %w", err)
	}
	return nil
}

// writeNew writes a file that must not be there, not even as a link.
func writeNew(name, text string) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
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
	text, err := readNote(file + suffix)
	if err != nil {
		return 0, fmt.Errorf("read the version of the state: %w", err)
	}
	version, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return 0, fmt.Errorf("read the version of the state: %s: %w", file+suffix, err)
	}
	return version, nil
}

// readNote reads a regular file that is no longer than a note: a FIFO would keep its reader
// waiting, a link or a device could have no end.
func readNote(name string) ([]byte, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() || st.Size() > maxNote {
		return nil, fmt.Errorf("%s is no number", name)
	}
	return io.ReadAll(io.LimitReader(f, maxNote))
}
