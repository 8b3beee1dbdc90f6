// Package tarcount counts the entries of a tar archive while it is read.
package tarcount

import (
	"archive/tar"
	"bytes"
	"strconv"
)

// Counter follows the headers of a tar archive: a header says how many bytes to skip to
// the next one. It counts each entry that archive/tar would find, and no more memory is
// kept than that of the records of one entry. A stream that is no archive is for its
// reader to refuse. The zero Counter is at the begin of an archive.
type Counter struct {
	block [blockSize]byte
	have  int   // bytes of block
	skip  int64 // bytes up to the next header

	pax, long []byte  // PAX records, and GNU's long name, for the next entry
	into      *[]byte // that of these two to which bytes that are skipped belong
	left      int     // bytes of it that are still to come
	inSparse  bool    // after the header of a sparse file of GNU's: more blocks of its map
	sparse    int64   // its content, after these
}

const (
	blockSize = 512
	// maxPAX is the most that archive/tar reads of the PAX records of one entry.
	maxPAX = 1 << 20
)

// Next returns how many entries begin in p, the next bytes of the archive. An entry
// begins where its header, of 512 bytes, is complete.
func (c *Counter) Next(p []byte) (entries int64) {
	for len(p) > 0 {
		if c.skip > 0 {
			n := int(min(c.skip, int64(len(p))))
			if c.left > 0 {
				kept := min(c.left, n)
				*c.into = append(*c.into, p[:kept]...)
				c.left -= kept
			}
			c.skip -= int64(n)
			p = p[n:]
			continue
		}
		n := copy(c.block[c.have:], p)
		c.have += n
		p = p[n:]
		if c.have < blockSize {
			break
		}
		c.have = 0
		if c.header() {
			entries++
		}
	}
	return entries
}

// header reads the header in block and reports whether it is one of an entry. It reads as
// archive/tar does: what that takes for an entry must not be content here.
func (c *Counter) header() bool {
	if c.inSparse { // more of the map
		if c.block[504] == 0 {
			c.skip, c.inSparse = c.sparse, false
		}
		return false
	}
	if c.block == [blockSize]byte{} {
		return false // the end of the archive
	}
	size, kind := number(c.block[124:136]), c.block[156]
	entry := false
	switch kind {
	case tar.TypeXHeader:
		c.keep(&c.pax, size)
	case tar.TypeGNULongName:
		c.keep(&c.long, size)
	case tar.TypeGNULongLink:
	case tar.TypeXGlobalHeader:
		c.pax, c.long = c.pax[:0], c.long[:0]
	default:
		size, entry = c.content(kind, size), true
		c.pax, c.long = c.pax[:0], c.long[:0]
	}
	c.skip = (min(size, 1<<54) + blockSize - 1) / blockSize * blockSize
	if kind == tar.TypeGNUSparse && c.block[482] != 0 {
		c.skip, c.sparse, c.inSparse = 0, c.skip, true
	}
	return entry
}

// keep has the next size bytes kept, as far as archive/tar takes them.
func (c *Counter) keep(into *[]byte, size int64) {
	*into = (*into)[:0]
	c.into, c.left = into, int(min(size, maxPAX))
}

// content returns the size of the content of the entry in block, whose header states size.
func (c *Counter) content(kind byte, size int64) int64 {
	switch kind {
	case tar.TypeLink, tar.TypeSymlink, tar.TypeChar, tar.TypeBlock, tar.TypeDir, tar.TypeFifo:
		return 0
	case 0: // of the oldest archives: a directory by its name
		name, _, _ := bytes.Cut(c.block[:100], []byte{0})
		if path := paxRecord(c.pax, "path"); len(path) > 0 {
			name = path
		}
		if long, _, _ := bytes.Cut(c.long, []byte{0}); len(long) > 0 {
			name = long
		}
		if len(name) == 0 || name[len(name)-1] == '/' { // the prefix of an empty one ends so
			return 0
		}
	}
	if v, err := strconv.ParseInt(string(paxRecord(c.pax, "size")), 10, 64); err == nil && v >= 0 {
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

// number reads a number of a header: octal digits, or base 256 where the highest
// bit is set.
func number(b []byte) int64 {
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
