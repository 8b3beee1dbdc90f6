package ocispec

import (
	"bufio"
	"bytes"
	"io"
	"strconv"
)

// passwdLines and groupLines leave out the lines of a passwd or group file in which an ID
// is no number: C libraries skip these, too, and the parser would take the ID for 0.
func passwdLines(r io.Reader) io.Reader { return numbered(r, 2, 3) }

func groupLines(r io.Reader) io.Reader { return numbered(r, 2) }

// longestLine is the length in bytes of a line that is read: that of a group names its
// members. It is the parser's.
const longestLine = 1 << 20

func numbered(r io.Reader, fields ...int) io.Reader {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, longestLine)
	return &numberedLines{lines: lines, fields: fields}
}

// numberedLines are the lines of a file whose fields of these numbers, from 0, are numbers,
// empty or missing.
type numberedLines struct {
	lines  *bufio.Scanner
	fields []int
	rest   []byte
}

// Read implements io.Reader.
func (n *numberedLines) Read(p []byte) (int, error) {
	for len(n.rest) == 0 {
		if !n.lines.Scan() {
			if err := n.lines.Err(); err != nil {
				return 0, err
			}
			return 0, io.EOF
		}
		if line := n.lines.Bytes(); n.fits(bytes.TrimSpace(line)) {
			n.rest = append(append(n.rest[:0], line...), '\n')
		}
	}
	m := copy(p, n.rest)
	n.rest = n.rest[m:]
	return m, nil
}

func (n *numberedLines) fits(line []byte) bool {
	for i := 0; i <= n.fields[len(n.fields)-1]; i++ {
		field, rest, more := bytes.Cut(line, []byte(":"))
		for _, number := range n.fields {
			if i != number || len(field) == 0 {
				continue
			}
			if _, err := strconv.Atoi(string(field)); err != nil {
				return false
			}
		}
		if !more {
			break
		}
		line = rest
	}
	return true
}
