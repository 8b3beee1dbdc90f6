package storage

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
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

// tarHeader returns a header of an archive.
func tarHeader(name string, kind byte, size string, change func([]byte)) []byte {
	b := make([]byte, tarBlock)
	copy(b, name)
	copy(b[100:], "0000644\x000000000\x000000000\x00")
	copy(b[124:], size)
	copy(b[136:], "00000000000\x00")
	b[156] = kind
	copy(b[257:], "ustar\x0000")
	if change != nil {
		change(b)
	}
	fillChecksum(b)
	return b
}

// isHeader reports whether a block can be the header of an entry.
func isHeader(b []byte) bool { return string(b[257:262]) == "ustar" }

// fillChecksum makes a block a header that archive/tar accepts, where it can be one.
func fillChecksum(b []byte) {
	if !isHeader(b) {
		return
	}
	copy(b[148:156], "        ")
	sum := 0
	for _, c := range b {
		sum += int(c)
	}
	copy(b[148:], fmt.Sprintf("%06o\x00 ", sum))
}

// entriesOf returns how many entries archive/tar finds in a stream, and how many are counted.
func entriesOf(t *testing.T, stream []byte) (found, counted int64) {
	t.Helper()
	in := tar.NewReader(bytes.NewReader(stream))
	for {
		h, err := in.Next()
		if err != nil {
			break
		}
		if h.Typeflag != tar.TypeXGlobalHeader {
			found++
		}
	}
	m := &meter{ctx: t.Context(), limits: DefaultLimits()}
	_, _ = io.Copy(io.Discard, m.read(bytes.NewReader(stream)))
	return found, m.entries.Load()
}

// hidingArchives are archives that state content where archive/tar finds entries.
func hidingArchives() map[string][]byte {
	const none, some = "00000000000\x00", "00000001000\x00" // 512 bytes
	file := tarHeader("hidden", tar.TypeReg, none, nil)
	meta := func(kind byte, text string) []byte {
		block := make([]byte, tarBlock)
		copy(block, text)
		return append(tarHeader("meta", kind, fmt.Sprintf("%011o\x00", len(text)), nil), block...)
	}
	gnu := func(extended byte) func([]byte) {
		return func(b []byte) { copy(b[257:], "ustar  \x00"); b[482] = extended; copy(b[483:], none) }
	}
	return map[string][]byte{
		"directory":       append(tarHeader("dir/", 0, some, nil), file...),
		"prefix":          append(tarHeader("", 0, some, func(b []byte) { b[345] = 'p' }), file...),
		"path":            slices.Concat(meta(tar.TypeXHeader, "13 path=dir/\n"), tarHeader("dir", 0, some, nil), file),
		"long name":       slices.Concat(meta(tar.TypeGNULongName, "dir/"), tarHeader("dir", 0, some, gnu(0)), file),
		"empty size":      slices.Concat(meta(tar.TypeXHeader, "12 size=512\n8 size=\n"), tarHeader("file", tar.TypeReg, none, nil), file),
		"global":          slices.Concat(meta(tar.TypeXHeader, "12 size=512\n"), meta(tar.TypeXGlobalHeader, "12 a=global\n"), tarHeader("file", tar.TypeReg, none, nil), file),
		"end of a number": append(tarHeader("file", tar.TypeReg, "0\x001000000000", nil), file...),
		"sparse": slices.Concat(tarHeader("file", tar.TypeGNUSparse, some, gnu(1)), make([]byte, tarBlock),
			tarHeader("content", tar.TypeReg, "00000002000\x00", nil), file, file),
	}
}

// TestMeterCountsAll: no archive has files that are not counted.
func TestMeterCountsAll(t *testing.T) {
	for name, stream := range hidingArchives() {
		if found, counted := entriesOf(t, stream); found == 0 || counted != found {
			t.Errorf("%s: %d entries are counted of %d", name, counted, found)
		}
	}
}
