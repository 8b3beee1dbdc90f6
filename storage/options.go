package storage

import (
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"go.podman.io/storage/types"
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
	// standard place (below $XDG_CONFIG_HOME/containers, by default ~/.config/containers;
	// $XDG_RUNTIME_DIR for auth.json), then /etc/containers, then /usr/share/containers.
	RegistriesConf, RegistriesConfDir, PolicyJSON, AuthFile, CertsDir string
	// Home is the user's home; "" is $HOME, then what /etc/passwd says.
	Home string
	// MaxParallelDownloads limits the layers downloaded at a time by one pull; 0 is 6.
	MaxParallelDownloads int
	// PullTimeout ends a pull that makes no progress for this long; 0 is one minute.
	PullTimeout time.Duration
	// Pinned are references of images that must never be garbage collected.
	Pinned []string
	// Pulled, unless it is nil, is called with each pull that has ended.
	Pulled func(Pulled) `json:"-"`
	// Limits bound what an image can choose.
	Limits Limits
	Log    *slog.Logger `json:"-"`

	// retryDelay is the wait before a registry is asked again, in tests; 0 is retryDelay.
	retryDelay time.Duration
}

// MountDirs are the directories below MountDir that root file systems and image mounts are
// mounted in; none without one.
func (o Options) MountDirs() []string {
	if o.MountDir == "" {
		return nil
	}
	d := directories{own: o.MountDir}
	return []string{d.rootfs(""), d.imageMount("")}
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
	if o.retryDelay <= 0 {
		o.retryDelay = retryDelay
	}
	if o.MaxParallelDownloads <= 0 {
		o.MaxParallelDownloads = 6
	}
	o.Limits = o.Limits.withDefaults()
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
	for _, name := range []string{"overlay-images/images.lock", "overlay-layers/layers.lock"} {
		f, err := os.OpenFile(filepath.Join(root, name), os.O_RDONLY|os.O_CREATE, 0o644) // as the library does
		if err != nil {
			return err
		}
		f.Close()
	}
	return nil
}

// storeOptions returns the options of containers/storage.
func (l *layerStore) storeOptions() types.StoreOptions {
	so := types.StoreOptions{
		GraphRoot: l.opts.Root, RunRoot: l.opts.RunRoot,
		GraphDriverName: "overlay",
		PullOptions:     map[string]string{"enable_partial_images": "true"},
		// No containers are kept in containers/storage; on tmpfs their empty
		// list costs nothing.
		TransientStore: true,
	}
	if l.driver.name == DriverVFS {
		so.GraphDriverName = "vfs"
	} else {
		so.GraphDriverOptions = append(so.GraphDriverOptions, "overlay.skip_mount_home=true")
	}
	if l.driver.name == DriverFuse {
		so.GraphDriverOptions = append(so.GraphDriverOptions, "overlay.mount_program="+l.driver.fuse)
	}
	if l.opts.IgnoreChownErrors {
		so.GraphDriverOptions = append(so.GraphDriverOptions, so.GraphDriverName+".ignore_chown_errors=true")
	}
	if l.driver.name == DriverVFS && len(l.opts.AdditionalStores) > 0 {
		l.log.Warn("additional image stores left out: they are for overlays", "driver", DriverVFS)
		return so
	}
	for _, p := range l.opts.AdditionalStores {
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
