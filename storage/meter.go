package storage

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"strconv"
	"sync/atomic"

	"go.podman.io/storage/pkg/archive"
)

// meter counts what all layers of one transfer unpack to. It ends their unpacking, which
// knows no context, with the context of the transfer.
type meter struct {
	ctx     context.Context
	limits  Limits
	bytes   atomic.Int64
	entries atomic.Int64
}

// read returns r, an uncompressed layer, as a stream that fails where the transfer's
// limits or its context end.
func (m *meter) read(r io.Reader) *meteredLayer { return &meteredLayer{meter: m, r: r, sparse: -1} }

// meteredLayer follows the headers of a tar archive while it is read: a header says how
// many bytes to skip to the next one. A stream that is no archive is for its reader to
// refuse.
type meteredLayer struct {
	meter *meter
	r     io.Reader
	err   error

	begun bool
	block [tarBlock]byte
	have  int   // bytes of block
	skip  int64 // bytes up to the next header

	pax, long []byte  // PAX records, and GNU's long name, for the next entry
	into      *[]byte // that of these two to which bytes that are skipped belong
	left      int     // bytes of it that are still to come
	sparse    int64   // content of a sparse file of GNU's, after more blocks of its map; -1 for none
}

const (
	tarBlock = 512
	// magicSize is how many bytes containers/storage looks at to find out how a stream is
	// compressed. It decompresses it then, and nothing would count what comes out.
	magicSize = 10
	// maxPAX is the most that archive/tar reads of the PAX records of one entry.
	maxPAX = 1 << 20
)

// Read implements io.Reader.
func (l *meteredLayer) Read(p []byte) (int, error) {
	if l.err == nil {
		l.err = context.Cause(l.meter.ctx)
	}
	if l.err != nil {
		return 0, l.err
	}
	n, err := l.r.Read(p)
	if total := l.meter.bytes.Add(int64(n)); total > l.meter.limits.Size {
		l.err = tooLarge("size", "its layers unpack to more bytes", l.meter.limits.Size)
	} else {
		l.err = l.follow(p[:n])
	}
	if l.err != nil {
		return 0, l.err
	}
	return n, err
}

// follow counts the headers in p.
func (l *meteredLayer) follow(p []byte) error {
	for len(p) > 0 {
		if l.skip > 0 {
			n := int(min(l.skip, int64(len(p))))
			if l.left > 0 {
				kept := min(l.left, n)
				*l.into = append(*l.into, p[:kept]...)
				l.left -= kept
			}
			l.skip -= int64(n)
			p = p[n:]
			continue
		}
		n := copy(l.block[l.have:], p)
		l.have += n
		p = p[n:]
		if !l.begun && l.have >= magicSize {
			l.begun = true
			if archive.DetectCompression(l.block[:magicSize]) != archive.Uncompressed {
				return fmt.Errorf("%w: a layer is compressed twice", ErrCorrupt)
			}
		}
		if l.have < tarBlock {
			return nil
		}
		l.have = 0
		if !l.header() {
			continue
		}
		if total := l.meter.entries.Add(1); total > l.meter.limits.Entries {
			return tooLarge("entries", "its layers hold more files", l.meter.limits.Entries)
		}
	}
	return nil
}

// header reads the header in block and reports whether it is one of an entry. It reads as
// archive/tar does: what that takes for an entry must not be content here.
func (l *meteredLayer) header() bool {
	if l.sparse >= 0 { // more of the map
		if l.block[504] == 0 {
			l.skip, l.sparse = l.sparse, -1
		}
		return false
	}
	if l.block == [tarBlock]byte{} {
		return false // the end of the archive
	}
	size, kind := tarNumber(l.block[124:136]), l.block[156]
	entry := false
	switch kind {
	case tar.TypeXHeader:
		l.keep(&l.pax, size)
	case tar.TypeGNULongName:
		l.keep(&l.long, size)
	case tar.TypeGNULongLink:
	case tar.TypeXGlobalHeader:
		l.pax, l.long = l.pax[:0], l.long[:0]
	default:
		size, entry = l.content(kind, size), true
		l.pax, l.long = l.pax[:0], l.long[:0]
	}
	l.skip = (min(size, 1<<54) + tarBlock - 1) / tarBlock * tarBlock
	if kind == tar.TypeGNUSparse && l.block[482] != 0 {
		l.skip, l.sparse = 0, l.skip
	}
	return entry
}

// keep has the next size bytes kept, as far as archive/tar takes them.
func (l *meteredLayer) keep(into *[]byte, size int64) {
	*into = (*into)[:0]
	l.into, l.left = into, int(min(size, maxPAX))
}

// content returns the size of the content of the entry in block, whose header states size.
func (l *meteredLayer) content(kind byte, size int64) int64 {
	switch kind {
	case tar.TypeLink, tar.TypeSymlink, tar.TypeChar, tar.TypeBlock, tar.TypeDir, tar.TypeFifo:
		return 0
	case 0: // of the oldest archives: a directory by its name
		name, _, _ := bytes.Cut(l.block[:100], []byte{0})
		if path := paxRecord(l.pax, "path"); len(path) > 0 {
			name = path
		}
		if long, _, _ := bytes.Cut(l.long, []byte{0}); len(long) > 0 {
			name = long
		}
		if len(name) == 0 || name[len(name)-1] == '/' { // the prefix of an empty one ends so
			return 0
		}
	}
	if v, err := strconv.ParseInt(string(paxRecord(l.pax, "size")), 10, 64); err == nil && v >= 0 {
		return v
	}
	return size
}

// paxRecord returns the value of a PAX record, the last one of this key.
func paxRecord(records []byte, key string) (value []byte) {
	for len(records) > 0 {
		length, rest, ok := bytes.Cut(records, []byte(" "))
		n, err := strconv.Atoi(string(length))
		if !ok || err != nil || n <= len(length)+1 || n > len(records) {
			return value
		}
		if v, ok := bytes.CutPrefix(rest[:n-len(length)-1], []byte(key+"=")); ok {
			value = bytes.TrimSuffix(v, []byte("\n"))
		}
		records = records[n:]
	}
	return value
}

// tarNumber reads a number of a header: octal digits, or base 256 where the highest
// bit is set.
func tarNumber(b []byte) int64 {
	var n int64
	if b[0]&0x80 != 0 {
		for i, c := range b {
			if i == 0 {
				c &= 0x7f
			}
			if n > 1<<54 {
				return 1 << 54
			}
			n = n<<8 | int64(c)
		}
		return n
	}
	b, _, _ = bytes.Cut(bytes.Trim(b, " \x00"), []byte{0})
	for _, c := range b {
		if c >= '0' && c <= '7' {
			n = n<<3 | int64(c-'0')
		}
	}
	return n
}
