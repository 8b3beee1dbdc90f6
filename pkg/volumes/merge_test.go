package volumes_test

import (
	"archive/tar"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/pkg/volumes"
)

// TestImportIntoLinks: a container that exchanges a directory of a volume for a link while
// something is imported does not have the files written where the link leads.
func TestImportIntoLinks(t *testing.T) {
	s := &volumes.Store{Dir: t.TempDir()}
	v, err := s.Create("v", nil)
	if err != nil {
		t.Fatal(err)
	}
	outside := t.TempDir()
	dir, link := filepath.Join(v.Path, "d"), filepath.Join(v.Path, "link")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, link); err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	headers := []*tar.Header{{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o755}}
	for i := range 20 {
		headers = append(headers, &tar.Header{Name: fmt.Sprintf("d/%d", i), Typeflag: tar.TypeReg, Mode: 0o644})
	}
	for _, h := range headers {
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var exchanging sync.WaitGroup
	defer exchanging.Wait()
	defer close(stop)
	exchanging.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				_ = unix.Renameat2(unix.AT_FDCWD, dir, unix.AT_FDCWD, link, unix.RENAME_EXCHANGE)
			}
		}
	})
	imported := false
	for range 200 {
		err := s.Import(t.Context(), "v", bytes.NewReader(archive.Bytes())) // fails where it sees the link
		imported = imported || err == nil
		if left, err := os.ReadDir(outside); err != nil || len(left) > 0 {
			t.Fatalf("out of the volume there are %v, %v", left, err)
		}
	}
	if !imported {
		t.Error("no import succeeded: nothing was tried")
	}
}
