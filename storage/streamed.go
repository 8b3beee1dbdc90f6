package storage

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"go.podman.io/image/v5/image"
	"go.podman.io/image/v5/manifest"
	"go.podman.io/image/v5/pkg/blobinfocache/none"
	"go.podman.io/image/v5/types"
	cstorage "go.podman.io/storage"
	"go.podman.io/storage/pkg/archive"
	"go.podman.io/storage/pkg/chunked/toc"
)

// containers/image writes each layer into a file while it decompresses it for its digest,
// then decompresses that file again to unpack it. Layers that are known beforehand (by the
// image's configuration) are unpacked here while they come, in one pass: the library then
// finds them in the store, by the IDs that it would give them. What goes wrong here the
// library tries again and reports; the proxy still has the blobs.

// streamed is a layer that can be unpacked while it comes.
type streamed struct {
	id, parent string
	blob       types.BlobInfo
	diffID     digest.Digest
}

// streamer unpacks layers for a worker, and says how far it is.
type streamer struct {
	*worker
	events chan<- types.ProgressProperties
}

// stream unpacks those layers of an image that it can. Its error ends the pull.
func (t streamer) stream(sys *types.SystemContext, src *openSource, instance *digest.Digest) error {
	if t.anew || t.im.store.driver.name == DriverVFS { // which holds the store's lock while it unpacks
		return nil
	}
	if policy, err := t.im.registries.readPolicy(); err != nil || !acceptsAnything(policy) {
		return nil // what has to be verified comes first
	}
	layers, err := t.streamable(sys, src.unparsed(instance))
	if err == nil {
		err = t.streamAll(src.source, layers)
	}
	var failed blobError
	switch {
	case err == nil:
		return nil
	case t.ctx.Err() != nil:
		return context.Cause(t.ctx)
	case errors.As(err, &failed), errors.Is(err, ErrTooLarge):
		return err
	}
	t.im.store.log.Debug("a layer was not unpacked while it came: once more, as a whole", "error", err)
	return nil
}

// streamable returns the layers of an image that are to be streamed: the first ones that
// are not there, up to one that is there on other layers, or that is pulled in part.
func (t streamer) streamable(sys *types.SystemContext, unparsed *image.UnparsedImage) ([]streamed, error) {
	img, err := image.FromUnparsedImage(t.ctx, sys, unparsed)
	if err != nil {
		return nil, err
	}
	if _, mime, err := img.Manifest(t.ctx); err != nil || mime != manifest.DockerV2Schema2MediaType && mime != v1.MediaTypeImageManifest {
		return nil, err
	}
	config, err := img.OCIConfig(t.ctx)
	if err != nil {
		return nil, err
	}
	blobs, diffIDs := img.LayerInfos(), config.RootFS.DiffIDs
	if len(blobs) != len(diffIDs) {
		return nil, fmt.Errorf("%w: its manifest has %d layers, its configuration %d", ErrCorrupt, len(blobs), len(diffIDs))
	}
	var layers []streamed
	parent := ""
	for i, blob := range blobs {
		diffID := diffIDs[i]
		if !canonical(diffID) || !canonical(blob.Digest) || blob.Size <= 0 || !plainLayer(blob) {
			break
		}
		id := chainID(parent, diffID)
		if len(layers) == 0 {
			if _, err := t.store.Layer(id); err == nil {
				parent = id
				continue
			}
		}
		if others, err := t.store.Store.LayersByUncompressedDigest(diffID); err == nil && len(others) > 0 {
			break // the library copies it
		}
		layers = append(layers, streamed{id: id, parent: parent, blob: blob, diffID: diffID})
		parent = id
	}
	return layers, nil
}

// canonical reports whether d is a digest of SHA-256.
func canonical(d digest.Digest) bool {
	return d.Validate() == nil && d.Algorithm() == digest.Canonical
}

// chainID is the ID that containers/image gives a layer.
func chainID(parent string, diffID digest.Digest) string {
	if parent == "" {
		return diffID.Encoded()
	}
	return digest.Canonical.FromString(parent + "+" + diffID.Encoded()).Encoded()
}

// plainLayer reports whether a blob is a tar archive that is neither encrypted nor pulled
// in part.
func plainLayer(blob types.BlobInfo) bool {
	switch blob.MediaType {
	case manifest.DockerV2Schema2LayerMediaType, manifest.DockerV2SchemaLayerMediaTypeUncompressed,
		v1.MediaTypeImageLayer, v1.MediaTypeImageLayerGzip, v1.MediaTypeImageLayerZstd:
	default:
		return false
	}
	table, err := toc.GetTOCDigest(blob.Annotations)
	return err == nil && table == nil
}

// blobError is why a blob cannot be had.
type blobError struct{ error }

// Unwrap returns the reason.
func (e blobError) Unwrap() error { return e.error }

// openBlob is a blob whose download has begun, or the reason why not.
type openBlob struct {
	io.ReadCloser                    // not to be closed while it is read
	cancel        context.CancelFunc // ends a Read that waits
	err           error
}

// streamAll unpacks layers, in this order, while they and some that follow are downloaded.
func (t streamer) streamAll(src types.ImageSource, layers []streamed) error {
	var opened []chan openBlob
	defer func() {
		for _, c := range opened {
			b := <-c
			b.cancel()
			if b.err == nil {
				b.Close()
			}
		}
	}()
	next := 0
	for _, l := range layers {
		for ; next < len(layers) && len(opened) < t.im.store.opts.MaxParallelDownloads; next++ {
			c := make(chan openBlob, 1)
			opened = append(opened, c)
			go func(blob types.BlobInfo) { c <- t.open(src, blob) }(layers[next].blob)
		}
		blob := <-opened[0]
		opened = opened[1:]
		if blob.err != nil {
			blob.cancel()
			return blobError{blob.err}
		}
		bytes, entries := t.meter.bytes.Load(), t.meter.entries.Load()
		if err := t.streamOne(l, blob); err != nil {
			t.meter.bytes.Store(bytes)
			t.meter.entries.Store(entries)
			return err
		}
	}
	return nil
}

// open begins to download a blob.
func (t streamer) open(src types.ImageSource, blob types.BlobInfo) openBlob {
	ctx, cancel := context.WithCancel(t.ctx)
	body, err := t.server.borrow(ctx, blob.Digest)
	if errors.Is(err, errNotLent) {
		body, _, err = src.GetBlob(ctx, blob, none.NoCache)
	}
	return openBlob{body, cancel, err}
}

// streamOne unpacks one layer.
func (t streamer) streamOne(l streamed, body openBlob) error {
	t.events <- types.ProgressProperties{Event: types.ProgressEventNewArtifact, Artifact: l.blob}
	blob := newBlobReader(body, t.store, l.blob, t.events)
	defer blob.end()
	if err := t.store.putStreamed(l, blob); err != nil {
		if errors.Is(err, ErrTooLarge) || t.ctx.Err() != nil {
			return err
		}
		if failed := blob.verify(); failed != nil && !errors.Is(failed, errNotLent) {
			return blobError{failed} // the reason of all else
		}
		return err
	}
	blob.tell(types.ProgressEventDone)
	return nil
}

// putStreamed makes a layer of a blob that is being downloaded. It is in the store only if
// it is, to its end, what the manifest and the configuration state.
func (s *holdingStore) putStreamed(l streamed, blob *blobReader) error {
	if err := s.hold(l.id); err != nil {
		return err
	}
	s.unpacking.Add(1)
	defer s.unpacking.Add(-1)
	layer, err := newVerifiedLayer(blob, l.diffID, s.meter)
	if err != nil {
		return err
	}
	defer layer.close()
	end, err := s.announceLowers(l.id, l.parent, false)
	if err != nil {
		return err
	}
	defer end()
	_, _, err = s.Store.PutLayer(l.id, l.parent, nil, "", false,
		&cstorage.LayerOptions{OriginalDigest: l.blob.Digest, OriginalSize: &l.blob.Size, UncompressedDigest: l.diffID}, layer)
	if errors.Is(err, cstorage.ErrDuplicateID) {
		return nil // another pull was faster
	}
	if err != nil && layer.metered.err != nil {
		err = layer.metered.err
	}
	if err == nil && !layer.verified {
		return errors.Join(fmt.Errorf("%w: layer %s was not read to its end", ErrCorrupt, l.id), s.Store.DeleteLayer(l.id))
	}
	return err
}

// verifiedLayer is an uncompressed layer that ends with io.EOF only where its digests are
// the ones that are stated.
type verifiedLayer struct {
	blob     *blobReader
	metered  *meteredLayer
	plain    *readAhead // nil for a blob that is not compressed: it has the layer's digest
	inner    io.Closer  // below plain
	diffID   digest.Digest
	verified bool
}

func newVerifiedLayer(blob *blobReader, diffID digest.Digest, m *meter) (*verifiedLayer, error) {
	l := &verifiedLayer{blob: blob, diffID: diffID}
	peeked := bufio.NewReader(blob)
	head, err := peeked.Peek(magicSize)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	if archive.DetectCompression(head) == archive.Uncompressed {
		l.metered = m.read(peeked)
		return l, nil
	}
	inner, err := archive.DecompressStream(peeked)
	if err != nil {
		return nil, err
	}
	l.inner, l.plain = inner, newReadAhead(inner, sha256.New())
	l.metered = m.read(l.plain)
	return l, nil
}

// Read implements io.Reader.
func (l *verifiedLayer) Read(p []byte) (int, error) {
	n, err := l.metered.Read(p)
	if errors.Is(err, io.EOF) {
		if failed := l.verify(); failed != nil {
			err = failed
		}
	}
	return n, err
}

func (l *verifiedLayer) verify() error {
	if err := l.blob.verify(); err != nil {
		return err
	}
	got := l.blob.info.Digest
	if l.plain != nil {
		got = digest.NewDigestFromBytes(digest.Canonical, l.plain.digest())
	}
	if got != l.diffID {
		return fmt.Errorf("%w: the layer unpacks to %s, its configuration states %s", ErrCorrupt, got, l.diffID)
	}
	l.verified = true
	return nil
}

// close ends the decompression. The blob can still be read.
func (l *verifiedLayer) close() {
	if l.plain != nil {
		l.plain.Close()
		l.inner.Close()
	}
}

// blobReader reads a blob, and says how far it is.
type blobReader struct {
	store *holdingStore
	body  openBlob

	mu     sync.Mutex // decompressors read ahead
	ahead  *readAhead
	info   types.BlobInfo
	events chan<- types.ProgressProperties
	read   int64
	err    error // of the last read
	told   time.Time
	untold uint64

	telling sync.Mutex
	ended   bool // nothing is told any more
}

func newBlobReader(body openBlob, store *holdingStore, info types.BlobInfo, events chan<- types.ProgressProperties) *blobReader {
	return &blobReader{store: store, body: body, ahead: newReadAhead(body, sha256.New()), info: info, events: events, told: time.Now()}
}

// Read implements io.Reader.
func (b *blobReader) Read(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err != nil {
		return 0, b.err
	}
	b.store.unpacking.Add(-1) // this is waiting for the registry
	n, err := b.ahead.Read(p)
	b.store.unpacking.Add(1)
	b.read += int64(n)
	b.untold += uint64(n)
	if b.read > b.info.Size {
		n, err = 0, fmt.Errorf("%w: blob %s is larger than its manifest states (%d bytes)", ErrCorrupt, b.info.Digest, b.info.Size)
	}
	b.err = err
	if time.Since(b.told) >= progressInterval {
		b.say(types.ProgressEventRead)
	}
	return n, err
}

// verify reads the rest and compares the blob with what the manifest states.
func (b *blobReader) verify() error {
	if _, err := io.Copy(io.Discard, b); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.read != b.info.Size {
		return fmt.Errorf("%w: blob %s has %d bytes, its manifest states %d", ErrCorrupt, b.info.Digest, b.read, b.info.Size)
	}
	if got := digest.NewDigestFromBytes(digest.Canonical, b.ahead.digest()); got != b.info.Digest {
		return fmt.Errorf("%w: blob %s has the digest %s", ErrCorrupt, b.info.Digest, got)
	}
	return nil
}

// progressInterval is the time between two events of progress of a blob.
const progressInterval = 500 * time.Millisecond

func (b *blobReader) tell(event types.ProgressEvent) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.say(event)
}

// end ends the download, and has the reader tell nothing any more: a program that
// decompresses reads on for a moment, and events are closed then.
func (b *blobReader) end() {
	b.body.cancel()
	b.ahead.Close()
	b.body.Close()
	b.telling.Lock()
	defer b.telling.Unlock()
	b.ended = true
}

// say sends an event. The caller holds the lock.
func (b *blobReader) say(event types.ProgressEvent) {
	b.telling.Lock()
	defer b.telling.Unlock()
	if b.ended {
		return
	}
	b.events <- types.ProgressProperties{Event: event, Artifact: b.info, Offset: uint64(b.read), OffsetUpdate: b.untold}
	b.untold, b.told = 0, time.Now()
}
