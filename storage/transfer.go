package storage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"go.podman.io/image/v5/types"
	cstorage "go.podman.io/storage"
	"golang.org/x/sys/unix"
)

// transfer is one pull or load under way: a temporary directory, and a context
// that ends when nothing moves any more.
type transfer struct {
	im     *Images
	store  *holdingStore
	ctx    context.Context
	cancel context.CancelCauseFunc
	tmp    string
	mark   string // file in directories.unsynced, "" before anything is written

	last atomic.Int64 // time of the last progress, Unix nanoseconds
}

// transfer runs do and cleans up after it: temporary files always, layers of no
// image if it failed. On success the content is written through to the disk in
// the background; until then a mark exists, for recovery.
func (im *Images) transfer(ctx context.Context, do func(*transfer) error) error {
	im.active.Add(1)
	defer im.active.Add(-1)
	tmp, err := makeTmp(im.store.dirs.tmp())
	if err != nil {
		return classify(ctx, fmt.Errorf("make a directory for blobs: %w", err))
	}
	t := &transfer{im: im, tmp: tmp}
	t.ctx, t.cancel = context.WithCancelCause(ctx)
	defer t.cancel(nil)
	t.store = &holdingStore{Store: im.store.cs, ctx: t.ctx, held: &im.held, layers: im.store, tmp: tmp}
	t.progressed()
	stop := make(chan struct{})
	go t.guard(stop)
	err = classify(t.ctx, do(t))
	close(stop)
	if rmErr := os.RemoveAll(tmp); rmErr != nil {
		im.store.log.Warn("temporary directory not removed", "path", tmp, "error", rmErr)
	}
	layers := t.store.release()
	if err != nil {
		t.removeLeft(layers)
		return err
	}
	t.writeThrough()
	return nil
}

// removeLeft removes what a failed transfer left. Nobody waits for it while there are
// other transfers: with vfs, containers/storage removes no layer while it unpacks one.
func (t *transfer) removeLeft(layers []string) {
	ctx := context.WithoutCancel(t.ctx)
	remove := func() {
		err := errors.Join(t.removeUnnamed(ctx), removeUnneeded(ctx, t.im.store, &t.im.held, layers), removeDanglingLinks(t.im.store))
		if err != nil {
			t.im.store.log.Warn("remains of a failed transfer stay until the next start", "error", err)
		}
		t.unmark()
	}
	if t.mark == "" {
		return
	}
	if t.im.active.Load() > 1 {
		t.im.work.Go(remove)
		return
	}
	remove()
}

// removeUnnamed removes images that the transfer began to make but did not name: they may lack something.
func (t *transfer) removeUnnamed(ctx context.Context) error {
	var errs error
	for _, id := range t.store.images {
		end, err := t.im.held.remove(ctx, imageKey(id))
		if end == nil {
			errs = errors.Join(errs, err)
			continue // another transfer makes it
		}
		img, err := t.im.store.cs.Image(id)
		switch {
		case errors.Is(err, cstorage.ErrImageUnknown):
			err = os.RemoveAll(t.im.store.imageDir(id)) // files without a record
		case err == nil && len(img.Names) == 0:
			err = t.im.Remove(ctx, id)
		}
		end()
		errs = errors.Join(errs, err)
	}
	return errs
}

// markDirty notes, on the disk, that an image is being written.
func (t *transfer) markDirty() error {
	if t.mark != "" {
		return nil
	}
	mark := filepath.Join(t.im.store.dirs.unsynced(), filepath.Base(t.tmp))
	f, err := os.OpenFile(mark, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("mark pull: %w", err)
	}
	defer f.Close()
	t.mark = mark
	// The boot tells a killed process (content is safe in the page cache) from a
	// machine that went down.
	if _, err := fmt.Fprintf(f, "%s %d\n", bootID(), time.Now().UnixNano()); err != nil {
		return fmt.Errorf("mark pull: %w", err)
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("mark pull: %w", err)
	}
	return syncDir(t.im.store.dirs.unsynced())
}

func (t *transfer) unmark() {
	if t.mark != "" {
		os.Remove(t.mark)
	}
}

// writeThrough syncs the store's file system in the background.
func (t *transfer) writeThrough() {
	if t.mark == "" {
		return
	}
	t.im.work.Go(func() {
		if err := syncFS(t.im.store.opts.Root); err != nil {
			t.im.store.log.Warn("image not written through to the disk", "error", err)
			return
		}
		t.unmark()
	})
}

func (t *transfer) progressed() { t.last.Store(time.Now().UnixNano()) }

// watch follows the copy's events: they are progress, for the guard and for
// whoever asked.
func (t *transfer) watch(events <-chan types.ProgressProperties, report func(Progress)) {
	var p Progress
	for e := range events {
		t.progressed()
		switch e.Event {
		case types.ProgressEventNewArtifact:
			p.Blobs++
			p.Total += max(e.Artifact.Size, 0)
		case types.ProgressEventRead:
			p.Downloaded += int64(e.OffsetUpdate)
		case types.ProgressEventDone:
			p.Downloaded += int64(e.OffsetUpdate)
			p.Total -= max(e.Artifact.Size-int64(e.Offset), 0) // what a partial pull needed not
			p.Done++
		case types.ProgressEventSkipped:
			p.Blobs++
			p.Done++
		}
		if report != nil {
			report(p)
		}
	}
}

// guard cancels the transfer when nothing has moved for PullTimeout. Unpacking is not
// waiting: what is being unpacked has been downloaded.
func (t *transfer) guard(stop <-chan struct{}) {
	limit := t.im.store.opts.PullTimeout
	tick := time.NewTicker(max(limit/8, 10*time.Millisecond))
	defer tick.Stop()
	var seen Usage
	for {
		select {
		case <-stop:
			return
		case <-t.ctx.Done():
			return
		case <-tick.C:
		}
		idle := time.Since(time.Unix(0, t.last.Load()))
		if idle < limit/4 {
			continue
		}
		if t.store.unpacking.Load() > 0 {
			t.progressed()
			continue
		}
		if now := t.written(); now != seen {
			seen = now
			t.progressed()
			continue
		}
		if idle >= limit {
			t.cancel(fmt.Errorf("%w for %v", errStalled, limit))
			return
		}
	}
}

// written measures what the transfer has put on the disk so far.
func (t *transfer) written() Usage {
	blobs, _ := diskUsage(t.ctx, t.tmp)
	staged, _ := diskUsage(t.ctx, filepath.Join(t.im.store.dirs.overlay(), "staging"))
	return Usage{Bytes: blobs.Bytes + staged.Bytes, Inodes: blobs.Inodes + staged.Inodes}
}

func bootID() string {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "unknown-" + strconv.Itoa(os.Getpid())
	}
	return strings.TrimSpace(string(id))
}

func syncFS(path string) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Syncfs(fd)
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
