package storage

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
)

// TestMeter: files are counted by the headers of the archive, however it is read, and not
// by what looks like one in a file.
func TestMeter(t *testing.T) {
	inner := layer{"a": {content: "x"}, "b": {content: "y"}}.tar(t)
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	long := strings.Repeat("n", 300)
	for _, h := range []*tar.Header{
		{Name: "inner.tar", Typeflag: tar.TypeReg, Size: int64(len(inner)), Format: tar.FormatPAX, PAXRecords: map[string]string{"SUBPOD.x": "y"}},
		{Name: long, Typeflag: tar.TypeReg, Size: 1, Format: tar.FormatGNU},
		{Name: "dir", Typeflag: tar.TypeDir}, {Name: "link", Typeflag: tar.TypeSymlink, Linkname: long},
	} {
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if h.Size > 0 {
			if _, err := w.Write(append([]byte("x"), inner...)[:h.Size]); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	for name, r := range map[string]io.Reader{
		"at once": bytes.NewReader(archive.Bytes()), "by bytes": iotest.OneByteReader(bytes.NewReader(archive.Bytes())),
	} {
		m := &meter{ctx: context.Background(), limits: DefaultLimits()}
		if _, err := io.Copy(io.Discard, m.read(r)); err != nil {
			t.Fatal(err)
		}
		if m.entries.Load() != 4 || m.bytes.Load() != int64(archive.Len()) {
			t.Errorf("%s: %d files and %d bytes, want 4 and %d", name, m.entries.Load(), m.bytes.Load(), archive.Len())
		}
	}
	for _, l := range []Limits{{Entries: 3}, {Size: 100}} {
		m := &meter{ctx: context.Background(), limits: l.withDefaults()}
		if _, err := io.Copy(io.Discard, m.read(bytes.NewReader(archive.Bytes()))); !errors.Is(err, ErrTooLarge) {
			t.Errorf("%+v: %v, want ErrTooLarge", l, err)
		}
	}
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := (&meter{ctx: ended, limits: DefaultLimits()}).read(&archive).Read(make([]byte, 1)); !errors.Is(err, context.Canceled) {
		t.Errorf("after the end of the context: %v", err)
	}
}
