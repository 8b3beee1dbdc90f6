package main

import (
	"archive/tar"
	"compress/gzip"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// makeArchive writes the tree as a .tar.gz, in one directory.
func makeArchive(j job) (err error) {
	name := j.path(j.name() + ".tar.gz")
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	z, err := gzip.NewWriterLevel(f, gzip.BestCompression)
	if err != nil {
		return err
	}
	t := tar.NewWriter(z)
	// WalkDir goes in lexical order.
	err = filepath.WalkDir(j.stage, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(j.stage, path)
		if err != nil {
			return err
		}
		return j.member(t, path, filepath.Join(j.name(), rel), d)
	})
	if err = errors.Join(err, t.Close(), z.Close(), f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	fmt.Println(name)
	return nil
}

// member writes one file or directory, root's and of the job's time.
func (j job) member(t *tar.Writer, path, name string, d fs.DirEntry) error {
	h := &tar.Header{Name: name, ModTime: j.time, Mode: 0o644, Typeflag: tar.TypeReg, Uname: "root", Gname: "root", Format: tar.FormatPAX}
	if d.IsDir() {
		h.Name, h.Mode, h.Typeflag = name+"/", 0o755, tar.TypeDir
		return t.WriteHeader(h)
	}
	if strings.Contains(path, "/bin/") {
		h.Mode = 0o755
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	h.Size = st.Size()
	if err := t.WriteHeader(h); err != nil {
		return err
	}
	_, err = io.Copy(t, f)
	return err
}

// makeSums writes SHA256SUMS of all files in the output directory, as sha256sum does.
func makeSums(j job) error {
	entries, err := os.ReadDir(j.out)
	if err != nil {
		return err
	}
	var out strings.Builder
	for _, e := range entries {
		if e.Name() == "SHA256SUMS" || e.IsDir() {
			continue
		}
		sum, err := digest(j.path(e.Name()))
		if err != nil {
			return err
		}
		fmt.Fprintf(&out, "%x  %s\n", sum, e.Name())
	}
	return os.WriteFile(j.path("SHA256SUMS"), []byte(out.String()), 0o644)
}

func digest(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return nil, err
	}
	return h.Sum(nil), nil
}
