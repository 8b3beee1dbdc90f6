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
func (m *meter) read(r io.Reader) *meteredLayer { return &meteredLayer{meter: m, r: r} }

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
	pax   []byte
	left  int // bytes of pax that are still to come
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
				l.pax = append(l.pax, p[:kept]...)
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

// header reads the header in block and reports whether it is one of an entry.
func (l *meteredLayer) header() bool {
	if l.block == [tarBlock]byte{} {
		return false // the end of the archive
	}
	size, entry := tarNumber(l.block[124:136]), true
	switch l.block[156] {
	case tar.TypeXHeader:
		l.pax, l.left, entry = l.pax[:0], int(min(size, maxPAX)), false
	case tar.TypeXGlobalHeader, tar.TypeGNULongName, tar.TypeGNULongLink:
		entry = false
	case tar.TypeLink, tar.TypeSymlink, tar.TypeChar, tar.TypeBlock, tar.TypeDir, tar.TypeFifo:
		size, l.pax = 0, l.pax[:0]
	default:
		if records := paxSize(l.pax); records >= 0 {
			size = records
		}
		l.pax = l.pax[:0]
	}
	l.skip = (min(size, 1<<54) + tarBlock - 1) / tarBlock * tarBlock
	return entry
}

// paxSize returns the size that PAX records state, -1 without.
func paxSize(records []byte) int64 {
	size := int64(-1)
	for len(records) > 0 {
		length, rest, ok := bytes.Cut(records, []byte(" "))
		n, err := strconv.Atoi(string(length))
		if !ok || err != nil || n <= len(length)+1 || n > len(records) {
			return size
		}
		if value, ok := bytes.CutPrefix(rest[:n-len(length)-1], []byte("size=")); ok {
			if v, err := strconv.ParseInt(string(bytes.TrimSuffix(value, []byte("\n"))), 10, 64); err == nil && v >= 0 {
				size = v
			}
		}
		records = records[n:]
	}
	return size
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
	for _, c := range b {
		if c >= '0' && c <= '7' {
			n = n<<3 | int64(c-'0')
		}
	}
	return n
}
