package main

import (
	"fmt"
	"io"
	"os"
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

// openDir makes a directory where there is none, for cli.ReplaceFile.
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
