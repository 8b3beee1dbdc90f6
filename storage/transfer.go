package storage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	cstorage "go.podman.io/storage"
	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/pkg/tree"
)

// transfer is one pull or load under way, as the server sees it: a temporary directory,
// and what is held for the content process.
type transfer struct {
	im   *Images
	ctx  context.Context
	tmp  string
	mark string   // file in directories.unsynced, "" before anything is written
	held []string // layers and images (imageKey), in the order in which they were first needed
	had  []string // images among them that were there before
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
	t := &transfer{im: im, ctx: ctx, tmp: tmp}
	err = classify(ctx, do(t))
	if rmErr := tree.RemoveAll(tmp); rmErr != nil {
		im.store.log.Warn("temporary directory not removed", "path", tmp, "error", rmErr)
	}
	layers, images := t.release()
	if err != nil {
		t.removeLeft(layers, images)
		return err
	}
	t.writeThrough()
	return nil
}

// removeLeft removes what a failed transfer left. Nobody waits for it while there are
// other transfers: with vfs, containers/storage removes no layer while it unpacks one.
func (t *transfer) removeLeft(layers, images []string) {
	ctx := context.WithoutCancel(t.ctx)
	remove := func() {
		err := errors.Join(t.removeUnnamed(ctx, images), removeUnneeded(ctx, t.im.store, &t.im.held, layers),
			removeDanglingLinks(t.im.store), removeStaged(t.im.store))
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
func (t *transfer) removeUnnamed(ctx context.Context, images []string) error {
	var errs error
	for _, id := range images {
		if slices.Contains(t.had, id) {
			continue
		}
		end, err := t.im.held.remove(ctx, imageKey(id))
		if end == nil {
			errs = errors.Join(errs, err)
			continue // another transfer makes it
		}
		img, err := t.im.store.cs.Image(id)
		switch {
		case errors.Is(err, cstorage.ErrImageUnknown):
			err = tree.RemoveAll(t.im.store.imageDir(id)) // files without a record
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
