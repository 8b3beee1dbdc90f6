package tree

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// holes returns an archive with one file of size bytes, all of which are a hole: some KiB.
func holes(size int64) io.Reader {
	record := func(key, value string) string {
		text := fmt.Sprintf(" %s=%s\n", key, value)
		n := len(text) + 2
		if n > 99 {
			n++
		}
		return fmt.Sprint(n) + text
	}
	block := func(b []byte) []byte { return append(b, make([]byte, -len(b)&511)...) }
	pax := record("GNU.sparse.major", "1") + record("GNU.sparse.minor", "0") + record("GNU.sparse.name", "hole") + record("GNU.sparse.realsize", fmt.Sprint(size))
	// The map: one piece of data without a byte, at the end.
	content := block(fmt.Appendf(nil, "1\n%d\n0\n", size))
	header := func(name string, kind byte, size int) []byte {
		b := make([]byte, 512)
		copy(b, name)
		copy(b[100:], "0000644\x000000000\x000000000\x00")
		copy(b[124:], fmt.Sprintf("%011o\x00%011o\x00        ", size, 0))
		b[156] = kind
		copy(b[257:], "ustar\x0000")
		sum := 0
		for _, c := range b {
			sum += int(c)
		}
		copy(b[148:], fmt.Sprintf("%06o\x00 ", sum))
		return b
	}
	var out bytes.Buffer
	out.Write(header("pax", 'x', len(pax)))
	out.Write(block([]byte(pax)))
	out.Write(header("hole", '0', len(content)))
	out.Write(content)
	out.Write(make([]byte, 1024))
	return &out
}

// TestHoles: an archive of some KiB does not fill the disk: what is a hole in it is one in
// the file.
func TestHoles(t *testing.T) {
	const size = 256 << 20
	at := t.TempDir()
	dir, err := os.OpenRoot(at)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if err := Unpack(t.Context(), dir, "", holes(size)); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(at, "hole"), &st); err != nil {
		t.Fatal(err)
	}
	if st.Size != size || st.Blocks*512 > 1<<20 {
		t.Errorf("a hole of %d bytes is a file of %d that takes %d", int64(size), st.Size, st.Blocks*512)
	}
	// Zeros that are none of a hole's, beside data and at the end.
	var stream bytes.Buffer
	w := tar.NewWriter(&stream)
	text := strings.Repeat("\x00", 200<<10) + "text" + strings.Repeat("\x00", 100<<10+1)
	if err := errors.Join(w.WriteHeader(&tar.Header{Name: "file", Mode: 0o600, Size: int64(len(text))}), must(io.WriteString(w, text)), w.Close()); err != nil {
		t.Fatal(err)
	}
	if err := Unpack(t.Context(), dir, "", &stream); err != nil {
		t.Fatal(err)
	}
	if got := read(t, filepath.Join(at, "file")); got != text {
		t.Errorf("a file with zeros has changed: %d bytes, want %d", len(got), len(text))
	}
}

func must(_ int, err error) error { return err }

// TestHoleWithoutClient: whoever asked for it has gone, and nothing more is read of the
// stream: unpacking ends all the same.
func TestHoleWithoutClient(t *testing.T) {
	dir, err := os.OpenRoot(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Unpack(ctx, dir, "", holes(1<<42)) }()
	cancel()
	select {
	case err := <-done:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("it ended by %v", err)
		}
	case <-time.After(time.Minute):
		t.Error("it goes on")
	}
}
