package storage

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"go.podman.io/image/v5/pkg/blobinfocache/none"
	"go.podman.io/image/v5/types"
)

// A zstd stream may begin with skippable frames (RFC 8878, 3.1.2), as pzstd writes them. The
// library does not take such a layer for zstd, and finds it corrupt. A pull that has failed
// so presents these layers without the frames.

// errNotFramed says that no layer begins with a skippable frame.
var errNotFramed = errors.New("no layer begins with a skippable frame")

// unframe replaces the layers that begin with skippable frames by ones without. errNotFramed,
// ErrCorrupt.
func (p *plainSource) unframe(ctx context.Context) error {
	var m v1.Manifest
	if err := json.Unmarshal(p.raw, &m); err != nil {
		return fmt.Errorf("%w: its manifest: %w", ErrCorrupt, err)
	}
	for i, l := range m.Layers {
		if !strings.HasSuffix(l.MediaType, "zstd") {
			continue
		}
		whole := types.BlobInfo{Digest: l.Digest, Size: l.Size, MediaType: l.MediaType}
		d, size, err := p.unframeLayer(ctx, whole)
		if err != nil {
			return err
		}
		if d == "" {
			continue
		}
		if p.unframed == nil {
			p.unframed = map[digest.Digest]types.BlobInfo{}
		}
		p.unframed[d] = whole
		m.Layers[i].Digest, m.Layers[i].Size = d, size
	}
	if p.unframed == nil {
		return errNotFramed
	}
	raw, err := json.Marshal(m)
	if err != nil {
		return err
	}
	p.raw, p.changed = raw, true
	return nil
}

// unframeLayer returns what a layer is without the skippable frames at its beginning. The digest
// is "" where there are none.
func (p *plainSource) unframeLayer(ctx context.Context, l types.BlobInfo) (digest.Digest, int64, error) {
	blob, _, err := p.ImageSource.GetBlob(ctx, l, none.NoCache)
	if err != nil {
		return "", 0, err
	}
	defer blob.Close()
	whole := l.Digest.Verifier()
	in := bufio.NewReader(io.TeeReader(io.LimitReader(blob, l.Size+1), whole))
	if framed, err := skipFrames(in); err != nil || !framed {
		return "", 0, err
	}
	rest := digest.Canonical.Digester()
	size, err := io.Copy(rest.Hash(), in)
	if err != nil {
		return "", 0, err
	}
	if !whole.Verified() {
		return "", 0, fmt.Errorf("%w: a layer does not have the digest %s", ErrCorrupt, l.Digest)
	}
	return rest.Digest(), size, nil
}

// skipFrames reads the skippable frames at the beginning of a zstd stream, and reports whether
// there were any.
func skipFrames(in *bufio.Reader) (skipped bool, err error) {
	for {
		head, err := in.Peek(8)
		if errors.Is(err, io.EOF) {
			return skipped, nil
		}
		if err != nil {
			return skipped, err
		}
		if binary.LittleEndian.Uint32(head)&^0xf != 0x184d2a50 {
			return skipped, nil
		}
		if _, err := io.CopyN(io.Discard, in, 8+int64(binary.LittleEndian.Uint32(head[4:]))); err != nil {
			return skipped, fmt.Errorf("%w: a skippable frame is cut off: %w", ErrCorrupt, err)
		}
		skipped = true
	}
}

// GetBlob returns a blob as it is presented. One without its first frames is read once more:
// the proxy still has it.
func (p *plainSource) GetBlob(ctx context.Context, info types.BlobInfo, cache types.BlobInfoCache) (io.ReadCloser, int64, error) {
	whole, framed := p.unframed[info.Digest]
	if !framed {
		return p.ImageSource.GetBlob(ctx, info, cache)
	}
	blob, _, err := p.ImageSource.GetBlob(ctx, whole, cache)
	if err != nil {
		return nil, 0, err
	}
	in := bufio.NewReader(io.LimitReader(blob, whole.Size))
	if _, err := skipFrames(in); err != nil {
		blob.Close()
		return nil, 0, err
	}
	return struct {
		io.Reader
		io.Closer
	}{in, blob}, info.Size, nil
}
