package tarcount

import (
	"archive/tar"
	"bytes"
	"fmt"
	"slices"
	"testing"
)

// tarHeader returns a header of an archive.
func tarHeader(name string, kind byte, size string, change func([]byte)) []byte {
	b := make([]byte, blockSize)
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
	return found, new(Counter).Next(stream)
}

// hidingArchives are archives that state content where archive/tar finds entries.
func hidingArchives() map[string][]byte {
	const none, some = "00000000000\x00", "00000001000\x00" // 512 bytes
	file := tarHeader("hidden", tar.TypeReg, none, nil)
	meta := func(kind byte, text string) []byte {
		block := make([]byte, blockSize)
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
		"sparse": slices.Concat(tarHeader("file", tar.TypeGNUSparse, some, gnu(1)), make([]byte, blockSize),
			tarHeader("content", tar.TypeReg, "00000002000\x00", nil), file, file),
	}
}

// TestCountsAll: no archive has files that are not counted.
func TestCountsAll(t *testing.T) {
	for name, stream := range hidingArchives() {
		if found, counted := entriesOf(t, stream); found == 0 || counted != found {
			t.Errorf("%s: %d entries are counted of %d", name, counted, found)
		}
	}
}
