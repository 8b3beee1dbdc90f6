package storage

import (
	"context"
	"fmt"
	"io"
	"sync/atomic"

	"go.podman.io/storage/pkg/archive"

	"github.com/subpod/subpod/storage/internal/tarcount"
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

// meteredLayer counts the entries of a tar archive while it is read.
type meteredLayer struct {
	meter *meter
	r     io.Reader
	err   error

	begin   []byte // its first bytes, up to magicSize
	counter tarcount.Counter
}

// magicSize is how many bytes containers/storage looks at to find out how a stream is
// compressed. It decompresses it then, and nothing would count what comes out.
const magicSize = 10

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

// follow counts the entries in p.
func (l *meteredLayer) follow(p []byte) error {
	if missing := magicSize - len(l.begin); missing > 0 {
		l.begin = append(l.begin, p[:min(missing, len(p))]...)
		if len(l.begin) == magicSize && archive.DetectCompression(l.begin) != archive.Uncompressed {
			return fmt.Errorf("%w: a layer is compressed twice", ErrCorrupt)
		}
	}
	if entries := l.counter.Next(p); l.meter.entries.Add(entries) > l.meter.limits.Entries {
		return tooLarge("entries", "its layers hold more files", l.meter.limits.Entries)
	}
	return nil
}
