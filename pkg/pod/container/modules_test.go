package container

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestNoModules: only the directory of a kernel's modules may be missing, and only to read.
func TestNoModules(t *testing.T) {
	missing := &fs.PathError{Op: "lstat", Path: "/lib/modules", Err: fs.ErrNotExist}
	for _, c := range []struct {
		path     string
		readonly bool
		err      error
		want     bool
	}{
		{"/lib/modules", true, missing, true},
		{"/lib/modules/", true, missing, true},
		{"/lib/modules", false, missing, false},
		{"/lib/modules", true, nil, false},
		{"/lib/modules", true, fs.ErrPermission, false},
		{"/lib/modules/6.1", true, missing, false},
		{"/lib", true, missing, false},
	} {
		if got := withoutModules(&runtimeapi.Mount{HostPath: c.path, Readonly: c.readonly}, c.err); got != c.want {
			t.Errorf("%s, read-only %v, %v: %v, want %v", c.path, c.readonly, c.err, got, c.want)
		}
	}
	b := &Builder{Dir: t.TempDir()}
	if err := os.Mkdir(filepath.Join(b.Dir, "c"), 0o711); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		dir, err := b.noModules("c")
		if err != nil {
			t.Fatal(err)
		}
		if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
			t.Errorf("%v, %v", entries, err)
		}
	}
	if _, err := b.noModules("other"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without a bundle: %v", err)
	}
}
