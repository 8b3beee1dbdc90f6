package storage

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	cstorage "github.com/containers/storage"
	"github.com/containers/storage/types"
	"golang.org/x/sys/unix"
)

// Options of a store. Root and RunRoot are needed, everything else has a
// default.
type Options struct {
	// Root is the durable directory for images and writable layers, RunRoot one
	// on tmpfs for what need not outlive the session. Both are made 0700.
	Root, RunRoot string
	// Driver is "fuse-overlayfs" (the default), "native" (the kernel's overlay),
	// "auto" (native if it works here, else fuse-overlayfs) or "vfs" (full
	// copies; never chosen unless named, or allowed by AllowVFS).
	Driver string
	// AllowVFS lets DriverAuto take vfs where no overlay works.
	AllowVFS bool
	// MountProgram is the path of fuse-overlayfs; "" looks in PATH.
	MountProgram string
	// MountDir is where root file systems are mounted; "" mounts each below
	// Root. With a nested user namespace (RootfsSpec.UIDMap) every directory
	// above the mount must be searchable by others, which the user's home
	// rarely is: name a directory in a tmpfs of the node's mount namespace.
	MountDir string
	// AdditionalStores are read-only containers/storage roots, for example
	// Podman's. One that does not exist is left out, with a warning.
	AdditionalStores []string
	// IgnoreChownErrors gives files whose owner is not mapped to uid 0.
	IgnoreChownErrors bool
	// Files and directories of the containers ecosystem. "" is the user's
	// standard place (below ~/.config/containers; $XDG_RUNTIME_DIR for auth.json),
	// then /etc/containers.
	RegistriesConf, RegistriesConfDir, PolicyJSON, AuthFile, CertsDir string
	// Home is the user's home; "" is $HOME, then what /etc/passwd says.
	Home string
	// MaxParallelDownloads limits the layers downloaded at a time by one pull; 0 is 6.
	MaxParallelDownloads int
	// PullTimeout ends a pull that makes no progress for this long; 0 is one minute.
	PullTimeout time.Duration
	// Pinned are references of images that must never be garbage collected.
	Pinned []string
	Log    *slog.Logger
}

// Info says which driver a store uses and why.
type Info struct {
	Driver    string // "fuse-overlayfs", "native" or "vfs"
	Reason    string // why this driver
	BackingFS string // file system of Root
	Root      string
	// MountProgram is fuse-overlayfs's path: also set with the native driver when
	// it is installed, because nested user namespaces need it.
	MountProgram string
}

// Store holds images and root file systems. Its methods may be called
// concurrently.
type Store struct {
	opts   Options
	log    *slog.Logger
	cs     cstorage.Store
	driver choice
	lock   *os.File
	own    string // directory of our own below Root
	pinned map[string]bool

	// images guards the set of images against root file systems: CreateRootfs
	// reads, RemoveImage writes.
	images  sync.RWMutex
	factsMu sync.Mutex
	facts   map[string]*facts

	rootfs keyedMutex

	registries registries
	pulls      pulls
	usage      layerUsage
	work       sync.WaitGroup // background syncs
}

// Open opens or makes the store at o.Root and repairs what a crash left: half
// applied layers, temporary files, images whose content did not reach the disk
// before the machine went down. Root file systems stay mounted. ErrNotUsable
// when no driver works here (the error says what was tried), ErrHeld when
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
	s := &Store{
		opts: o, log: o.Log, own: filepath.Join(o.Root, "subpod"),
		pinned: pinnedNames(o.Pinned, o.Log), facts: map[string]*facts{},
		pulls: pulls{flights: map[string]*flight{}},
		usage: layerUsage{known: map[string]Usage{}},
	}
	s.registries = registries{opts: &s.opts, cache: filepath.Join(s.own, "cache"), log: o.Log}
	for _, dir := range []string{o.Root, o.RunRoot, s.own, s.rootfsDir(""), s.imageMountDir("")} {
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
	if s.lock, err = holdLock(ctx, filepath.Join(s.own, "lock")); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			s.lock.Close()
		}
	}()
	if s.driver, err = chooseDriver(ctx, o); err != nil {
		return nil, err
	}
	if err := s.setAsideIndexes(); err != nil {
		return nil, err
	}
	if s.cs, err = cstorage.GetStore(s.storeOptions()); err != nil {
		return nil, fmt.Errorf("%w: open %s: %w", ErrNotUsable, o.Root, err)
	}
	if err := s.recover(ctx); err != nil {
		s.cs.Shutdown(false)
		return nil, err
	}
	if s.driver.name == DriverVFS {
		s.log.Warn("every layer and every container is a full copy: slow, and many times as large", "driver", DriverVFS, "why", s.driver.reason)
	}
	s.log.Info("storage open", "root", o.Root, "driver", s.driver.name, "why", s.driver.reason)
	return s, nil
}

// Close ends pulls that still run and lets go of the store. Mounted root file
// systems stay mounted. Idempotent.
func (s *Store) Close() error {
	s.pulls.close()
	s.work.Wait()
	_, err := s.cs.Shutdown(false)
	if errors.Is(err, cstorage.ErrLayerUsedByContainer) {
		err = nil
	}
	s.lock.Close()
	return err
}

// Info returns the facts of the store.
func (s *Store) Info() Info {
	return Info{Driver: s.driver.name, Reason: s.driver.reason, BackingFS: s.driver.backing,
		Root: s.opts.Root, MountProgram: s.driver.fuse}
}

func checkOptions(o *Options) error {
	if !filepath.IsAbs(o.Root) || !filepath.IsAbs(o.RunRoot) {
		return fmt.Errorf("%w: root %q and run root %q must be absolute paths", ErrNotUsable, o.Root, o.RunRoot)
	}
	for _, p := range append([]string{o.Root, o.MountDir}, o.AdditionalStores...) {
		if strings.ContainsAny(p, ",:\\\n") {
			return fmt.Errorf("%w: %q: overlay mount options can't carry a comma, colon, backslash or newline in a path: choose another directory", ErrNotUsable, p)
		}
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("%w: not uid 0 of a user namespace (uid %d)", ErrNotUsable, os.Geteuid())
	}
	if o.Home == "" {
		o.Home = homeOf(userOutside())
	}
	if o.PullTimeout <= 0 {
		o.PullTimeout = time.Minute
	}
	if o.MaxParallelDownloads <= 0 {
		o.MaxParallelDownloads = 6
	}
	stores := o.AdditionalStores[:0:0]
	for _, p := range o.AdditionalStores {
		if err := checkAdditional(p); err != nil {
			o.Log.Warn("additional image store left out", "path", p, "error", err)
			continue
		}
		stores = append(stores, filepath.Clean(p))
	}
	o.AdditionalStores = stores
	return nil
}

// checkAdditional reports why the additional store at root can't be used. One that
// this user may not read all of, as root's own, would keep ours from opening.
func checkAdditional(root string) error {
	if _, err := os.Stat(filepath.Join(root, "overlay-images")); err != nil {
		return err
	}
	for _, name := range []string{"overlay", "overlay-images", "overlay-images/images.json", "overlay-layers", "overlay-layers/layers.json"} {
		if path := filepath.Join(root, name); !readable(path) {
			return fmt.Errorf("open %s: %w", path, fs.ErrPermission)
		}
	}
	return nil
}

func (s *Store) storeOptions() types.StoreOptions {
	so := types.StoreOptions{
		GraphRoot: s.opts.Root, RunRoot: s.opts.RunRoot,
		GraphDriverName: "overlay",
		PullOptions:     map[string]string{"enable_partial_images": "true"},
		// No containers are kept in containers/storage; on tmpfs their empty
		// list costs nothing.
		TransientStore: true,
	}
	if s.driver.name == DriverVFS {
		so.GraphDriverName = "vfs"
	} else {
		so.GraphDriverOptions = append(so.GraphDriverOptions, "overlay.skip_mount_home=true")
	}
	if s.driver.name == DriverFuse {
		so.GraphDriverOptions = append(so.GraphDriverOptions, "overlay.mount_program="+s.driver.fuse)
	}
	if s.opts.IgnoreChownErrors {
		so.GraphDriverOptions = append(so.GraphDriverOptions, so.GraphDriverName+".ignore_chown_errors=true")
	}
	for _, p := range s.opts.AdditionalStores {
		so.GraphDriverOptions = append(so.GraphDriverOptions, so.GraphDriverName+".imagestore="+p)
	}
	return so
}

func pinnedNames(refs []string, log *slog.Logger) map[string]bool {
	pinned := map[string]bool{}
	for _, r := range refs {
		named, err := parseReference(r)
		if err != nil {
			log.Warn("pinned image ignored", "error", err)
			continue
		}
		pinned[named.String()] = true
	}
	return pinned
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

// keyedMutex locks by ID.
type keyedMutex struct {
	mu    sync.Mutex
	locks map[string]*countedMutex
}

type countedMutex struct {
	sync.Mutex
	users int
}

// lock locks id and returns the function that unlocks it.
func (k *keyedMutex) lock(id string) func() {
	k.mu.Lock()
	if k.locks == nil {
		k.locks = map[string]*countedMutex{}
	}
	m := k.locks[id]
	if m == nil {
		m = &countedMutex{}
		k.locks[id] = m
	}
	m.users++
	k.mu.Unlock()
	m.Lock()
	return func() {
		m.Unlock()
		k.mu.Lock()
		if m.users--; m.users == 0 {
			delete(k.locks, id)
		}
		k.mu.Unlock()
	}
}
