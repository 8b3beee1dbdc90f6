package storage

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Spares of root file systems: mounted before they are asked for.
const (
	// spareDelay is how long a container that was created has the machine to itself, for
	// its start, before the next spare is made.
	spareDelay = 10 * time.Millisecond
	// spareIdle is how long a spare waits for a container of its image.
	spareIdle = time.Minute
	// spareCheck is how often a spare that waits is looked at.
	spareCheck = 5 * time.Second
	// spareAnswer bounds the wait for a spare's file system to answer, of one that is to be
	// handed out.
	spareAnswer = 100 * time.Millisecond
)

// spares keeps, for each of the images used last, one root file system that nobody has
// had: with fuse-overlayfs the start of a program, and its reading of the directories
// that every container looks into, go before the request. It is made as any other (record, tree,
// mount) in a directory of its own, and becomes a container's by one rename. Nothing
// outlives the server: what one that was killed left is removed by the next.
//
// One goroutine makes and drops them; it ends when there is nothing to keep.
type spares struct {
	rootfs *Rootfs
	limit  int // images
	idle   time.Duration
	ctx    context.Context // of the store
	cancel context.CancelFunc
	work   sync.WaitGroup

	mu        sync.Mutex
	running   bool
	wake      chan struct{}        // of one
	wanted    map[string]time.Time // images by ID: last use
	ready     map[string]string    // directories, by image
	suspended map[string]int       // images that are being removed
	failed    map[string]time.Time // images of which none could be made
	building  *spareBuild
}

// spareBuild is a spare that is being made.
type spareBuild struct {
	image string
	ctx   context.Context
	stop  context.CancelFunc
	ended chan struct{}
}

// newSpares returns spares for at most limit images.
func newSpares(r *Rootfs, limit int) *spares {
	s := &spares{rootfs: r, limit: limit, idle: spareIdle, wake: make(chan struct{}, 1), wanted: map[string]time.Time{},
		ready: map[string]string{}, suspended: map[string]int{}, failed: map[string]time.Time{}}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// sweep removes the spares that an earlier server has left. Before the first is made.
func (s *spares) sweep() error {
	r := s.rootfs
	parent := r.store.dirs.spare("")
	dirs := []string{parent}
	if r.store.opts.MountDir != "" {
		// A mount stays alone where the tree had become a container's already.
		dirs = append(dirs, filepath.Join(r.store.opts.MountDir, filepath.Base(parent)))
	}
	var errs error
	for _, dir := range dirs {
		ids, err := listIDs(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = errors.Join(errs, err)
		}
		for _, id := range ids {
			errs = errors.Join(errs, r.removeTree(r.store.dirs.spare(id)))
		}
	}
	return errs
}

// take returns the directory of a spare of the image, "" where there is none. It is the
// caller's.
func (s *spares) take(image string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	dir := s.ready[image]
	delete(s.ready, image)
	return dir
}

// want says that the image is used, and has a spare made for the next container; not with
// other drivers, which mount faster than a spare is handed out.
func (s *spares) want(image string) {
	if s.limit <= 0 || s.rootfs.store.driver.name != DriverFuse {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.suspended[image] > 0 || time.Since(s.failed[image]) < spareIdle || s.ctx.Err() != nil {
		return
	}
	s.wanted[image] = time.Now()
	if s.running {
		s.poke()
		return
	}
	s.running = true
	s.work.Go(s.keep)
}

func (s *spares) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// suspend removes the image's spare and has no other made until resume is called.
func (s *spares) suspend(ctx context.Context, image string) (resume func(), err error) {
	s.mu.Lock()
	s.suspended[image]++
	delete(s.wanted, image)
	delete(s.failed, image)
	dir, build := s.ready[image], s.building
	delete(s.ready, image)
	s.mu.Unlock()
	resume = func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.suspended[image]--; s.suspended[image] == 0 {
			delete(s.suspended, image)
		}
	}
	if build != nil && build.image == image {
		build.stop()
		select {
		case <-build.ended:
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
	}
	if dir != "" {
		err = errors.Join(err, s.rootfs.removeTree(dir))
	}
	if err != nil {
		resume()
		return nil, fmt.Errorf("remove the spare root file system of %s: %w", image, err)
	}
	return resume, nil
}

// close removes all spares and makes no more.
func (s *spares) close() {
	s.cancel()
	s.work.Wait()
}

// keep makes and drops spares until there is nothing to keep.
func (s *spares) keep() {
	for {
		select {
		case <-time.After(spareDelay):
		case <-s.ctx.Done():
		}
		build, drop, more := s.next()
		for _, dir := range drop {
			if err := s.rootfs.removeTree(dir); err != nil {
				s.rootfs.store.log.Warn("a spare root file system can't be removed, the next server will", "path", dir, "error", err)
			}
		}
		switch {
		case !more:
			return
		case build != nil:
			s.build(build)
			continue
		}
		check := time.NewTimer(min(spareCheck, s.idle))
		select {
		case <-s.wake:
		case <-check.C:
		case <-s.ctx.Done():
		}
		check.Stop()
	}
}

// next decides: of which image to make a spare, if any, which spares to drop, and whether
// there is more to keep.
func (s *spares) next() (build *spareBuild, drop []string, more bool) {
	pressed := memoryIsShort()
	s.mu.Lock()
	defer s.mu.Unlock()
	images := make([]string, 0, len(s.wanted))
	for image := range s.wanted {
		images = append(images, image)
	}
	slices.SortFunc(images, func(a, b string) int { return s.wanted[b].Compare(s.wanted[a]) }) // the last used first
	for i, image := range images {
		if i >= s.limit || pressed || s.ctx.Err() != nil || time.Since(s.wanted[image]) >= s.idle {
			delete(s.wanted, image)
		}
	}
	for image, dir := range s.ready {
		if _, ok := s.wanted[image]; !ok {
			delete(s.ready, image)
			drop = append(drop, dir)
		}
	}
	for _, candidate := range images {
		if _, ok := s.wanted[candidate]; ok && s.ready[candidate] == "" {
			build = &spareBuild{image: candidate, ended: make(chan struct{})}
			build.ctx, build.stop = context.WithCancel(s.ctx)
			s.building = build
			break
		}
	}
	more = len(s.wanted) > 0
	s.running = more
	return build, drop, more
}

// build makes the spare that next has begun.
func (s *spares) build(b *spareBuild) {
	defer close(b.ended)
	defer b.stop()
	dir, err := s.make(b.ctx, b.image)
	s.mu.Lock()
	s.building = nil
	stopped := b.ctx.Err() != nil
	switch {
	case err == nil && !stopped:
		s.ready[b.image], dir = dir, ""
	case err != nil:
		delete(s.wanted, b.image)
		if !stopped {
			s.failed[b.image] = time.Now()
		}
	}
	s.mu.Unlock()
	if err == nil && dir != "" {
		err, stopped = s.rootfs.removeTree(dir), false
	}
	if err != nil && !stopped {
		s.rootfs.store.log.Info("no spare root file system is kept of an image", "image", b.image, "error", err)
	}
}

// make makes a root file system that is nobody's yet.
func (s *spares) make(ctx context.Context, image string) (_ string, err error) {
	r := s.rootfs
	img, err := r.store.cs.Image(image)
	if err != nil {
		return "", err
	}
	if img.ReadOnly {
		return "", errors.New("it is in a store of others, who may remove it")
	}
	if err := os.MkdirAll(r.store.dirs.spare(""), 0o711); err != nil {
		return "", err
	}
	dir := r.store.dirs.spare(strings.ToLower(rand.Text()))
	defer func() {
		if err != nil {
			err = errors.Join(err, r.removeTree(dir))
		}
	}()
	rec := record{ImageID: image}
	layers, err := r.claimImage(ctx, dir, rec)
	if err != nil {
		return "", err
	}
	if err := r.writeTree(dir, rec, layers); err != nil {
		return "", err
	}
	target, err := r.mount(ctx, dir, rec)
	if err != nil {
		return "", err
	}
	described, err := r.store.describe(img)
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, fuseTimeout)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = unix.Unmount(target, unix.MNT_FORCE) }) // ends all waits for it
	defer stop()
	lookAhead(target, described.Config)
	return dir, ctx.Err()
}

// handOut makes a spare of the image the tree in dir, mounted, where there is one.
func (s *spares) handOut(ctx context.Context, image, dir string) (path string, ok bool) {
	r := s.rootfs
	if err := r.store.images.hold(ctx, image); err != nil {
		return "", false
	}
	defer r.store.images.release(image)
	spare := s.take(image)
	if spare == "" {
		return "", false
	}
	s.want(image)
	path, err := s.adopt(ctx, spare, dir)
	if err == nil {
		return path, true
	}
	r.store.log.Warn("a spare root file system could not be used", "image", image, "error", err)
	if err := r.removeTree(dir); err != nil {
		r.store.log.Warn("what became of it could not be removed", "error", err)
	}
	return "", false
}

// adopt makes a spare the tree in dir, mounted.
func (s *spares) adopt(ctx context.Context, spare, dir string) (path string, err error) {
	r := s.rootfs
	from := r.mountPoint(spare)
	defer func() {
		if err != nil {
			err = errors.Join(err, r.removeTree(spare))
		}
	}()
	if err := answersSoon(ctx, from); err != nil {
		return "", err
	}
	if err := os.Rename(spare, dir); err != nil {
		return "", err
	}
	target := r.mountPoint(dir)
	if r.store.opts.MountDir == "" {
		return target, nil // it lies in the tree
	}
	if err := os.MkdirAll(target, 0o711); err != nil {
		return "", err
	}
	// A mount below a shared one can't be moved.
	if err := bind(from, target, false); err != nil {
		return "", err
	}
	if err := unmount(from); err != nil {
		return "", err
	}
	return target, os.Remove(from)
}

// answersSoon returns an error when the file system mounted on path is dead, or too slow
// to be worth waiting for.
func answersSoon(ctx context.Context, path string) error {
	ctx, cancel := context.WithTimeout(ctx, spareAnswer)
	defer cancel()
	if mounted, err := isMountPoint(path); err != nil || !mounted {
		return fmt.Errorf("%s is not mounted any more: %w", path, errors.Join(err, ErrRootfsNotFound))
	}
	answered := make(chan error, 1)
	go func() { answered <- answers(path) }()
	select {
	case err := <-answered:
		return err
	case <-ctx.Done():
		_ = unix.Unmount(path, unix.MNT_FORCE) // ends the wait
		return fmt.Errorf("%s does not answer: %w", path, context.Cause(ctx))
	}
}
