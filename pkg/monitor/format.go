package monitor

import (
	"bytes"
	"time"
)

// maxPiece is the length from which on a line is cut into pieces, as containerd's is.
const maxPiece = 16 << 10

// stampFormat has a fixed width: formatted again, a batch has the same length.
const stampFormat = "2006-01-02T15:04:05.000000000Z07:00"

// chunk is how much of a formatted log is written at once, about.
const chunk = 128 << 10

// formatter turns output into lines of a log in the CRI format. What it writes depends on
// its fields and the input alone.
type formatter struct {
	prefix string // time and stream
	buf    []byte
	write  func([]byte) error
}

func newFormatter(buf []byte, stamp int64, stream string, write func([]byte) error) *formatter {
	at := time.Unix(0, stamp).UTC()
	return &formatter{prefix: at.Format(stampFormat) + " " + stream + " ", buf: buf[:0], write: write}
}

// lines writes the complete lines of in, and pieces of longer ones, and returns what is
// left: at most maxPiece bytes without a line end.
func (f *formatter) lines(in []byte) (rest []byte, err error) {
	for len(in) > 0 {
		line, after, whole := bytes.Cut(in, []byte{'\n'})
		for len(line) > maxPiece {
			if err := f.add("P ", line[:maxPiece]); err != nil {
				return nil, err
			}
			line = line[maxPiece:]
		}
		if !whole {
			rest = line
			break
		}
		if err := f.add("F ", line); err != nil {
			return nil, err
		}
		in = after
	}
	return rest, f.flush()
}

// end writes the end of a line that has none.
func (f *formatter) end(rest []byte) error {
	if len(rest) == 0 {
		return nil
	}
	if err := f.add("P ", rest); err != nil {
		return err
	}
	return f.flush()
}

func (f *formatter) add(tag string, text []byte) error {
	f.buf = append(f.buf, f.prefix...)
	f.buf = append(f.buf, tag...)
	f.buf = append(f.buf, text...)
	f.buf = append(f.buf, '\n')
	if len(f.buf) < chunk {
		return nil
	}
	return f.flush()
}

func (f *formatter) flush() error {
	if len(f.buf) == 0 {
		return nil
	}
	err := f.write(f.buf)
	f.buf = f.buf[:0]
	return err
}

// remainder is what lines returns, without writing.
func remainder(in []byte) []byte {
	if i := bytes.LastIndexByte(in, '\n'); i >= 0 {
		in = in[i+1:]
	}
	for len(in) > maxPiece {
		in = in[maxPiece:]
	}
	return in
}
