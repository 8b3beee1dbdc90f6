package storage

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
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

// unframe replaces the layers that begin with skippable frames by ones without, which are kept
// in directory tmp. errNotFramed, ErrCorrupt.
func (p *plainSource) unframe(ctx context.Context, tmp string) error {
	var m v1.Manifest
	if err := json.Unmarshal(p.raw, &m); err != nil {
		return fmt.Errorf("%w: its manifest: %w", ErrCorrupt, err)
	}
	for i, l := range m.Layers {
		if !strings.HasSuffix(l.MediaType, "zstd") || p.unframed[l.Digest] != "" {
			continue
		}
		path := filepath.Join(tmp, fmt.Sprintf("unframed-%d", i))
		d, size, err := p.unframeLayer(ctx, l, path)
		if err != nil {
			return err
		}
		if d == "" {
			continue
		}
		if p.unframed == nil {
			p.unframed = map[digest.Digest]string{}
		}
		p.unframed[d] = path
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

// unframeLayer writes a layer without the skippable frames at its beginning to path, and returns
// what that is. The digest is "" where there are none.
func (p *plainSource) unframeLayer(ctx context.Context, l v1.Descriptor, path string) (digest.Digest, int64, error) {
	blob, _, err := p.ImageSource.GetBlob(ctx, types.BlobInfo{Digest: l.Digest, Size: l.Size, MediaType: l.MediaType}, none.NoCache)
	if err != nil {
		return "", 0, err
	}
	defer blob.Close()
	whole := l.Digest.Verifier()
	in := bufio.NewReader(io.TeeReader(io.LimitReader(blob, l.Size+1), whole))
	if framed, err := skipFrames(in); err != nil || !framed {
		return "", 0, err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	rest := digest.Canonical.Digester()
	size, err := io.Copy(io.MultiWriter(f, rest.Hash()), in)
	if err != nil {
		return "", 0, err
	}
	if !whole.Verified() {
		return "", 0, fmt.Errorf("%w: a layer does not have the digest %s", ErrCorrupt, l.Digest)
	}
	return rest.Digest(), size, f.Close()
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

// GetBlob returns a blob as it is presented.
func (p *plainSource) GetBlob(ctx context.Context, info types.BlobInfo, cache types.BlobInfoCache) (io.ReadCloser, int64, error) {
	path := p.unframed[info.Digest]
	if path == "" {
		return p.ImageSource.GetBlob(ctx, info, cache)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, err
	}
	st, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, st.Size(), nil
}
