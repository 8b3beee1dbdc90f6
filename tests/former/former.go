// Package former has the state of nodes as earlier versions of subpod have left it, each
// with the changes of its last moments in the journal only: what every later version must
// read. record.sh makes one of a commit's programs.
package former

import (
	"archive/tar"
	"compress/gzip"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
)

const suffix = ".tar.gz"

// Versions returns the commits whose state is here, in the order of their names.
func Versions(t testing.TB) []string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(testdata(), "*"+suffix))
	if err != nil || len(files) == 0 {
		t.Fatalf("no state of former versions: %v", err)
	}
	var names []string
	for _, file := range files {
		names = append(names, strings.TrimSuffix(filepath.Base(file), suffix))
	}
	slices.Sort(names)
	return names
}

// Meaning returns the file with what the records of a version mean, for people to read
// and for later versions to agree with.
func Meaning(version string) string { return filepath.Join(testdata(), version+".txt") }

func testdata() string {
	_, here, _, _ := runtime.Caller(0)
	if !filepath.IsAbs(here) { // -trimpath; the test of a package runs in its directory
		here = "../../tests/former/former.go"
	}
	return filepath.Join(filepath.Dir(here), "testdata")
}

// Unpack puts the state of a version into the directory, which is that of a node's data.
func Unpack(t testing.TB, version, dir string) {
	t.Helper()
	if err := unpack(filepath.Join(testdata(), version+suffix), dir); err != nil {
		t.Fatalf("state of %s: %v", version, err)
	}
}

func unpack(file, dir string) (err error) {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return err
	}
	for r := tar.NewReader(z); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		to := filepath.Join(dir, filepath.FromSlash(h.Name))
		if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
			return err
		}
		text, err := io.ReadAll(r)
		if err != nil {
			return err
		}
		if err := os.WriteFile(to, text, 0o600); err != nil {
			return err
		}
	}
}
