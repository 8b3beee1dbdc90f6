package storage

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"time"

	cstorage "go.podman.io/storage"
	"golang.org/x/sys/unix"
)

// Info describes the driver of a store.
type Info struct {
	Driver    string // "fuse-overlayfs", "native" or "vfs"
	Reason    string // why this driver
	BackingFS string // file system of Root
	Root      string
	// MountProgram is fuse-overlayfs's path: also set with the native driver when
	// it is installed, because nested user namespaces need it.
	MountProgram string
}

// Store is an open store. The methods of its two managers may be called
// concurrently.
type Store struct {
	Images *Images
	Rootfs *Rootfs

	layers *layerStore
	lock   *os.File
}

// Open opens or makes the store at o.Root and repairs what a crash left: half
// applied layers, temporary files, images whose content did not reach the disk
// before the machine went down. Root file systems stay mounted. ErrNotUsable
// when no driver works here (the error names what was tried), ErrHeld when
// another process has the store open for longer than five seconds or ctx.
func Open(ctx context.Context, o Options) (_ *Store, err error) {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if err := checkOptions(&o); err != nil {
		return nil, err
	}
	if err := setRootlessMarkers(userOutside(), o.Home); err != nil {
		return nil, err
	}
	forwardLogrus(o.Log)
	// Descriptors that this process was itself left with by whoever started it
	// must not live on in fuse-overlayfs. (Before Linux 5.11 they do.)
	_ = unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC)
	l := newLayerStore(o)
	for _, dir := range []string{o.Root, o.RunRoot, l.dirs.own, l.dirs.rootfs(""), l.dirs.imageMount("")} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrNotUsable, err)
		}
	}
	if o.MountDir != "" {
		// Nestable looks at it before there is a root file system.
		if err := os.MkdirAll(o.MountDir, 0o711); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrNotUsable, err)
		}
	}
	lock, err := holdLock(ctx, filepath.Join(l.dirs.own, "lock"))
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			lock.Close()
		}
	}()
	s := &Store{Images: newImages(l), Rootfs: &Rootfs{store: l}, layers: l, lock: lock}
	err = l.reserve.use(func() error {
		if err := l.open(ctx); err != nil {
			return err
		}
		if err := s.Images.recover(ctx); err != nil {
			l.cs.Shutdown(false)
			return err
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	if l.driver.name == DriverVFS {
		l.log.Warn("every layer and every container is a full copy: slow, and many times as large", "driver", DriverVFS, "reason", l.driver.reason)
	}
	if l.driver.name == DriverFuse {
		files, err := lockFiles(l.driver.fuseFiles)
		if err != nil {
			l.log.Info("fuse-overlayfs does not stay in memory: while all memory is used, containers wait for it", "error", err, "limit", memlock(),
				"hint", "where RLIMIT_MEMLOCK is the cause, raise LimitMEMLOCK of user@.service, or memlock in limits.conf")
		}
		l.resident = files
	}
	l.log.Info("storage open", "root", o.Root, "driver", l.driver.name, "reason", l.driver.reason)
	return s, nil
}

// Close ends pulls that still run and releases the store. Mounted root file systems
// stay mounted. Idempotent.
func (s *Store) Close() error {
	s.Images.close()
	s.layers.usages.stop()
	if err := s.layers.vet(); err != nil { // the library reads its lists once more
		s.layers.log.Warn("the store's lists can't be looked at", "error", err)
	}
	s.layers.resident.release()
	s.layers.resident = nil
	_, err := s.layers.cs.Shutdown(false)
	if errors.Is(err, cstorage.ErrLayerUsedByContainer) || sentinelOf(err) == ErrNoSpace {
		err = nil // it only notes for other processes that the driver was shut down
	}
	s.lock.Close()
	return err
}

// Info returns which driver the store uses and where it is.
func (s *Store) Info() Info {
	d := s.layers.driver
	return Info{Driver: d.name, Reason: d.reason, BackingFS: d.backing, Root: s.layers.opts.Root, MountProgram: d.fuse}
}

// holdLock takes the lock file at path. The kernel frees it when the process
// dies, however it dies; no child inherits it.
func holdLock(ctx context.Context, path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotUsable, err)
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			f.Close()
			return nil, fmt.Errorf("%w: lock %s: %w", ErrNotUsable, path, err)
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("%w: %s", ErrHeld, path)
		case <-time.After(20 * time.Millisecond):
		}
	}
}
