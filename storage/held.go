package storage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/opencontainers/go-digest"
	cstorage "go.podman.io/storage"
	"go.podman.io/storage/pkg/archive"
	"golang.org/x/sys/unix"
)

// holds counts, by ID, who relies on a thing that others may want to remove. A thing
// that is held is not removed, and one that is being removed is held only afterwards.
// No lock is held over anything but the maps.
//
// Layers are held by the transfers that made them or need not download them: what a
// failed transfer left is removed while others go on, whose layers belong to no image
// yet either. Images are held while a root file system is recorded.
type holds struct {
	mu       sync.Mutex
	holders  map[string]int
	removing map[string]chan struct{} // closed when the removal has ended
}

// lock locks the maps when no removal of id is going on.
func (h *holds) lock(ctx context.Context, id string) error {
	for {
		h.mu.Lock()
		ended := h.removing[id]
		if ended == nil {
			return nil
		}
		h.mu.Unlock()
		select {
		case <-ended:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// hold counts one more holder of id, after a removal of it that is going on.
func (h *holds) hold(ctx context.Context, id string) error {
	if err := h.lock(ctx, id); err != nil {
		return err
	}
	defer h.mu.Unlock()
	if h.holders == nil {
		h.holders = map[string]int{}
	}
	h.holders[id]++
	return nil
}

// release counts one holder less for each of ids.
func (h *holds) release(ids ...string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, id := range ids {
		if h.holders[id]--; h.holders[id] == 0 {
			delete(h.holders, id)
		}
	}
}

// alone reports whether id has one holder.
func (h *holds) alone(id string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.holders[id] == 1
}

// remove begins a removal of id, after one that is going on, and returns the function
// that ends it; nil when id is held.
func (h *holds) remove(ctx context.Context, id string) (end func(), err error) {
	if err := h.lock(ctx, id); err != nil {
		return nil, err
	}
	defer h.mu.Unlock()
	if h.holders[id] > 0 {
		return nil, nil
	}
	ended := make(chan struct{})
	if h.removing == nil {
		h.removing = map[string]chan struct{}{}
	}
	h.removing[id] = ended
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.removing, id)
		close(ended)
	}, nil
}

// holdingStore is containers/storage as one transfer sees it, in its content process:
// what the transfer asks for or makes it has the server hold until its end. What it
// unpacks is metered, and what an image says of itself is checked.
type holdingStore struct {
	cstorage.Store
	server *serverConn
	meter  *meter
	layers *layerStore
	tmp    string // of the transfer

	unpacking atomic.Int64 // layers that are being unpacked

	mu     sync.Mutex
	known  map[string]bool   // held already
	lowers map[string]string // see lowersOf
	stated map[digest.Digest]int64
}

// hold has the server hold id, once.
func (s *holdingStore) hold(id string) error {
	s.mu.Lock()
	known := s.known[id]
	s.mu.Unlock()
	if known {
		return nil
	}
	if err := s.server.ask(contentMessage{Hold: id}); err != nil {
		return fmt.Errorf("hold %s: %w", id, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.known == nil {
		s.known = map[string]bool{}
	}
	s.known[id] = true
	return nil
}

// holdFound holds the layers that find returns, and asks again until it returns none
// that is not held: one may have been removed before it was.
func (s *holdingStore) holdFound(find func() ([]cstorage.Layer, error)) ([]cstorage.Layer, error) {
	held := map[string]bool{}
	for {
		layers, err := find()
		if err != nil {
			return nil, err
		}
		again := false
		for i := range layers {
			if layers[i].ReadOnly || held[layers[i].ID] {
				continue
			}
			if err := s.hold(layers[i].ID); err != nil {
				return nil, err
			}
			held[layers[i].ID], again = true, true
		}
		if !again {
			return layers, nil
		}
	}
}

// Layer returns the layer with this ID and holds it.
func (s *holdingStore) Layer(id string) (*cstorage.Layer, error) {
	if err := s.hold(id); err != nil {
		return nil, err
	}
	return s.Store.Layer(id)
}

// LayersByCompressedDigest returns and holds the layers that were made of this blob.
func (s *holdingStore) LayersByCompressedDigest(d digest.Digest) ([]cstorage.Layer, error) {
	return s.holdFound(func() ([]cstorage.Layer, error) { return s.Store.LayersByCompressedDigest(d) })
}

// LayersByUncompressedDigest returns and holds the layers with this content.
func (s *holdingStore) LayersByUncompressedDigest(d digest.Digest) ([]cstorage.Layer, error) {
	return s.holdFound(func() ([]cstorage.Layer, error) { return s.Store.LayersByUncompressedDigest(d) })
}

// LayersByTOCDigest returns and holds the layers that were pulled in part by this
// table of contents.
func (s *holdingStore) LayersByTOCDigest(d digest.Digest) ([]cstorage.Layer, error) {
	return s.holdFound(func() ([]cstorage.Layer, error) { return s.Store.LayersByTOCDigest(d) })
}

// PutLayer makes a layer and holds it.
func (s *holdingStore) PutLayer(id, parent string, names []string, mountLabel string, writeable bool, options *cstorage.LayerOptions, diff io.Reader) (*cstorage.Layer, int64, error) {
	if err := s.checkSize(options, diff); err != nil {
		return nil, -1, err
	}
	if err := s.hold(id); err != nil {
		return nil, -1, err
	}
	s.unpacking.Add(1)
	defer s.unpacking.Add(-1)
	layer, size, err := s.unpack(id, parent, names, mountLabel, writeable, options, diff)
	if again, ok := diff.(io.ReadSeeker); ok && hasDuplicates(err) && options != nil {
		plain, once, err := withoutDuplicates(again, *options)
		if err != nil {
			return nil, -1, err
		}
		defer plain.Close()
		return s.unpack(id, parent, names, mountLabel, writeable, &once, plain)
	}
	return layer, size, err
}

// unpack is unpackOnce, again where what it was doing was swept away, and where a directory
// has a name that the library does not take.
func (s *holdingStore) unpack(id, parent string, names []string, mountLabel string, writeable bool, options *cstorage.LayerOptions, diff io.Reader) (*cstorage.Layer, int64, error) {
	rawNames := false
	for try := 1; ; try++ {
		layer, size, err := s.unpackOnce(id, parent, names, mountLabel, writeable, options, diff, rawNames)
		if err == nil && rawNames {
			if err = restoreNames(s.layers.diffDir(id)); err != nil {
				return nil, -1, errors.Join(fmt.Errorf("give the directories of layer %s their names: %w", id, err), s.Store.DeleteLayer(id))
			}
		}
		again, ok := diff.(io.Seeker)
		if !ok || try == 4 || !sweptAway(err) && !hasRawNames(err) {
			return layer, size, err
		}
		rawNames = rawNames || hasRawNames(err)
		if _, err := again.Seek(0, io.SeekStart); err != nil {
			return nil, -1, err
		}
	}
}

// sweptAway reports whether err is that another process took a temporary directory of
// containers/storage for one of a process that is gone. The library makes the file that
// is its lock and locks it in two steps, and one that sweeps may be in between.
func sweptAway(err error) bool {
	return err != nil && strings.Contains(err.Error(), "/temp-dir-") && strings.Contains(err.Error(), unix.ENOENT.Error())
}

// unpackOnce is PutLayer, with what is below the layer known to the helper that unpacks it.
func (s *holdingStore) unpackOnce(id, parent string, names []string, mountLabel string, writeable bool, options *cstorage.LayerOptions, diff io.Reader, rawNames bool) (*cstorage.Layer, int64, error) {
	end, err := s.announceLowers(id, parent, rawNames)
	if err != nil {
		return nil, -1, err
	}
	defer end()
	if diff == nil || options == nil || options.OriginalDigest == "" {
		return s.Store.PutLayer(id, parent, names, mountLabel, writeable, options, diff)
	}
	return s.putMetered(id, parent, names, mountLabel, writeable, *options, diff)
}

// putMetered is PutLayer of a layer whose digest is known: it is decompressed here, so
// that what it unpacks to is metered.
func (s *holdingStore) putMetered(id, parent string, names []string, mountLabel string, writeable bool, options cstorage.LayerOptions, diff io.Reader) (*cstorage.Layer, int64, error) {
	if f, ok := diff.(*os.File); ok && options.OriginalSize == nil {
		st, err := f.Stat()
		if err != nil {
			return nil, -1, err
		}
		size := st.Size()
		options.OriginalSize = &size
	}
	plain, err := archive.DecompressStream(diff)
	if err != nil {
		return nil, -1, err
	}
	defer plain.Close()
	metered := s.meter.read(plain)
	layer, size, err := s.Store.PutLayer(id, parent, names, mountLabel, writeable, &options, metered)
	if err != nil && metered.err != nil {
		err = metered.err // what the archive's readers make of it is less clear
	}
	return layer, size, err
}

// ApplyStagedLayer makes a layer of one that was pulled in part, and holds it.
func (s *holdingStore) ApplyStagedLayer(args cstorage.ApplyStagedLayerOptions) (*cstorage.Layer, error) {
	if err := s.hold(args.ID); err != nil {
		return nil, err
	}
	layer, err := s.Store.ApplyStagedLayer(args)
	if err == nil {
		s.markRoot(args)
	}
	return layer, err
}

// CreateImage makes an image and holds it, also where it fails: its files are written
// before its record.
func (s *holdingStore) CreateImage(id string, names []string, layer, metadata string, options *cstorage.ImageOptions) (*cstorage.Image, error) {
	if options != nil {
		for _, data := range options.BigData {
			if _, err := digest.Parse(data.Key); err != nil {
				continue // no configuration
			}
			if err := s.meter.limits.checkConfig(data.Data); err != nil {
				return nil, err
			}
		}
	}
	if err := s.hold(imageKey(id)); err != nil {
		return nil, err
	}
	return s.Store.CreateImage(id, names, layer, metadata, options)
}

// imageKey is what an image that is being made is held by.
func imageKey(id string) string { return "image " + id }

// removeUnneeded removes those of ids that no image, no other layer and no transfer
// needs. Children go before their parents.
func removeUnneeded(ctx context.Context, l *layerStore, held *holds, ids []string) error {
	for again := true; again; {
		again = false
		for i, id := range slices.Backward(ids) {
			end, err := held.remove(ctx, id)
			if err != nil {
				return err
			}
			if end == nil {
				continue
			}
			err = l.deleteLayer(id) // refuses a layer that an image or a layer needs
			end()
			switch {
			case err == nil:
				l.log.Debug("layer of a failed transfer removed", "layer", id)
				ids, again = slices.Delete(ids, i, i+1), true
			case errors.Is(err, cstorage.ErrLayerUnknown), errors.Is(err, cstorage.ErrNotALayer),
				errors.Is(err, cstorage.ErrLayerHasChildren), errors.Is(err, cstorage.ErrLayerUsedByImage):
			default:
				return fmt.Errorf("remove layer %s: %w", id, err)
			}
			if again {
				break
			}
		}
	}
	return nil
}
