package cli

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// ReplaceFile writes a file below root at once, with the directories above it: on an error,
// as of a full disk, what was there before stays whole, and so it does in a power cut. Links
// that lead out of root are not followed.
func ReplaceFile(root *os.Root, name, text string, mode fs.FileMode) error {
	dir, base := filepath.Split(name)
	if err := root.MkdirAll(filepath.Clean(dir), 0o755); err != nil {
		return err
	}
	tmp := filepath.Join(dir, "."+base+".new")
	_ = root.Remove(tmp) // of one that was killed
	f, err := root.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = root.Rename(tmp, name)
	}
	if err != nil {
		_ = root.Remove(tmp)
	}
	return err
}
