package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// readFile is os.ReadFile for files of at most limit bytes.
func readFile(name string, limit int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readAll(f, limit)
}

// readSource is readFile for an argument, where "-" stands for standard input.
func readSource(name string, limit int64) ([]byte, error) {
	if name == "-" {
		return readAll(os.Stdin, limit)
	}
	return readFile(name, limit)
}

func readAll(f *os.File, limit int64) ([]byte, error) {
	text, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(text)) > limit {
		err = fmt.Errorf("%s is larger than %d bytes", f.Name(), limit)
	}
	return text, err
}

// replaceFile writes a file below root at once, with the directories above it: on an error,
// as of a full disk, what was there before stays whole. Links that lead out of root are not
// followed.
func replaceFile(root *os.Root, name, text string, mode fs.FileMode) error {
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

// openDir makes a directory where there is none, for replaceFile.
func openDir(dir string) (*os.Root, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	return os.OpenRoot(dir)
}

// maxIDFile bounds a file of --cidfile, in bytes: an ID and white space.
const maxIDFile = 4 << 10

// readIDFile reads what writeIDFile has written.
func readIDFile(flag, file string) (string, error) {
	text, err := readFile(file, maxIDFile)
	if err != nil {
		return "", fmt.Errorf("%s: %w", flag, err)
	}
	return strings.TrimSpace(string(text)), nil
}
