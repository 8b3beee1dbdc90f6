package tree

import (
	"bytes"
	"context"
	"io"
	"os"
)

// contentReader reads the content of a stream's entry until its context ends. A hole in it
// takes no bytes of the stream, and no end of it ends the reading of the hole.
type contentReader struct {
	ctx context.Context
	io.Reader
}

// Read implements io.Reader.
func (r contentReader) Read(p []byte) (int, error) {
	if r.ctx.Err() != nil {
		return 0, context.Cause(r.ctx)
	}
	return r.Reader.Read(p)
}

// contentBuffer is the size in bytes of the pieces in which content is written.
const contentBuffer = 64 << 10

// writeContent writes the content of a new file, and leaves out pieces that are zeros: an
// archive of some KiB may hold files of any size, most of which are holes.
func writeContent(f *os.File, content io.Reader, size int64) error {
	if err := f.Truncate(size); err != nil {
		return err // more than any file can have
	}
	buf := make([]byte, min(size, contentBuffer))
	for at := int64(0); at < size; {
		n, err := io.ReadFull(content, buf[:min(size-at, contentBuffer)])
		if bytes.Count(buf[:n], []byte{0}) != n {
			if _, err := f.WriteAt(buf[:n], at); err != nil {
				return err
			}
		}
		if err != nil {
			return err
		}
		at += int64(n)
	}
	return nil
}
