package storage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	graphdriver "go.podman.io/storage/drivers"
	"golang.org/x/sys/unix"
)

// The drivers that Options.Driver can name, besides DriverAuto's choice of the
// first two.
const (
	DriverFuse   = "fuse-overlayfs"
	DriverNative = "native"
	DriverVFS    = "vfs"
	DriverAuto   = "auto"
)

// choice is the driver of an open store.
type choice struct {
	name, reason string
	fuse         string   // path of fuse-overlayfs, "" when there is none
	fuseFiles    []string // its program and libraries; none where it was not tried
	backing      string
}

// chooseDriver selects a driver by real mounts below o.Root.
func chooseDriver(ctx context.Context, o Options) (choice, error) {
	c := choice{}
	var err error
	if c.backing, err = backingFS(ctx, o.Root); err != nil {
		return c, err
	}
	if !o.IgnoreChownErrors {
		if err := probeOwners(o.Root, c.backing); err != nil {
			return c, err
		}
	}
	fuse, fuseErr := o.MountProgram, error(nil)
	if fuse == "" {
		fuse, fuseErr = exec.LookPath("fuse-overlayfs")
	}
	if fuseErr == nil {
		c.fuse = fuse
	}
	tryFuse := func() (err error) {
		if fuseErr != nil {
			return fmt.Errorf("fuse-overlayfs: %w: install the package fuse-overlayfs", fuseErr)
		}
		c.fuseFiles, err = probeFuse(ctx, o.Root, fuse)
		return err
	}
	tryNative := func() error {
		if err := checkFormat(o); err != nil {
			return err
		}
		return probeNative(o.Root)
	}
	switch o.Driver {
	case "", DriverFuse:
		c.name, c.reason = DriverFuse, "configured"
		if o.Driver == "" {
			c.reason = "the default"
		}
		err = tryFuse()
	case DriverNative:
		c.name, c.reason, err = DriverNative, "configured", tryNative()
	case DriverVFS:
		c.name, c.reason = DriverVFS, "configured: every layer and container is a full copy"
	case DriverAuto:
		nativeErr := tryNative()
		if nativeErr == nil {
			c.name, c.reason = DriverNative, "auto: an overlay mount of the kernel works on "+o.Root
			break
		}
		c.name, c.reason = DriverFuse, "auto: native overlay does not work: "+nativeErr.Error()
		fuseErr := tryFuse()
		if fuseErr == nil {
			break
		}
		if o.AllowVFS {
			c.name, c.reason = DriverVFS, fmt.Sprintf("auto, with allow_vfs: no overlay works: %v; %v", nativeErr, fuseErr)
			break
		}
		err = fmt.Errorf("no overlay works (vfs, which copies everything, must be asked for by name or allowed by allow_vfs): %w",
			errors.Join(nativeErr, fuseErr))
	default:
		err = fmt.Errorf("unknown driver %q: known are %s, %s, %s, %s", o.Driver, DriverFuse, DriverNative, DriverAuto, DriverVFS)
	}
	if err != nil {
		return c, fmt.Errorf("%w: %w", ErrNotUsable, err)
	}
	return c, nil
}

// backingFS names the file system of root. A dead network file system hangs
// statfs(2) for ever: it is given five seconds.
func backingFS(ctx context.Context, root string) (string, error) {
	type result struct {
		magic graphdriver.FsMagic
		err   error
	}
	done := make(chan result, 1)
	go func() {
		magic, err := graphdriver.GetFSMagic(root)
		done <- result{magic, err}
	}()
	select {
	case r := <-done:
		if r.err != nil {
			return "", fmt.Errorf("%w: statfs %s: %w", ErrNotUsable, root, r.err)
		}
		if name, ok := graphdriver.FsNames[r.magic]; ok {
			return name, nil
		}
		return fmt.Sprintf("%#x", uint32(r.magic)), nil
	case <-time.After(5 * time.Second):
		return "", fmt.Errorf("%w: %s does not answer (a dead network file system?): choose a root on a local disk", ErrNotUsable, root)
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

// probeOwners tries what every image needs: files that belong to other IDs. On
// NFS and GPFS the server refuses, because it knows nothing of user namespaces.
func probeOwners(root, backing string) error {
	if idCount("uid") < 2 || idCount("gid") < 2 {
		return nil
	}
	f, err := os.CreateTemp(root, ".probe")
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNotUsable, err)
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if err := f.Chown(1, 1); err != nil {
		return fmt.Errorf("%w: files on %s (%s) can't be given to other users of this namespace: %w; choose a root on a local disk, or set ignore_chown_errors",
			ErrNotUsable, root, backing, err)
	}
	return nil
}

// probeNative mounts a kernel overlay with a whiteout in it, as a layer has.
func probeNative(root string) error {
	return probe(root, func(m overlayMount) error {
		whiteout := filepath.Join(m.lowers[0], "gone")
		if err := unix.Mknod(whiteout, unix.S_IFCHR, 0); err != nil {
			return fmt.Errorf("native overlay on %s: make a whiteout: %w", root, err)
		}
		if err := m.mountNative(); err != nil {
			return fmt.Errorf("native overlay on %s: %w (Linux 5.11 or newer and a local file system are needed)", root, err)
		}
		return nil
	})
}

// probeFuse mounts fuse-overlayfs, and returns the files of its program and libraries.
func probeFuse(ctx context.Context, root, program string) (files []string, err error) {
	err = probe(root, func(m overlayMount) error {
		if err := m.addWhiteout(); err != nil {
			return err
		}
		pid, err := m.startFuse(ctx, program, "-f")
		if err == nil {
			files, _ = mappedFiles(pid) // none of a program that is in the background in spite of it
			return m.checkWhiteout(program)
		}
		f, devErr := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
		if devErr != nil {
			return fmt.Errorf("fuse-overlayfs: %w (/dev/fuse must be there and writable: %w; driver \"auto\" may do without)", err, devErr)
		}
		f.Close()
		return err
	})
	return files, err
}

// addWhiteout puts a layer between those of a probe that hides the directory "again" of the
// lower one. The upper one has it again, as after "rm -r" and "mkdir" in two steps of a build.
func (m *overlayMount) addWhiteout() error {
	top, base := m.lowers[0], m.lowers[1]
	middle := filepath.Join(filepath.Dir(base), "middle")
	for _, dir := range []string{middle, filepath.Join(top, "again"), filepath.Join(base, "again")} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	m.lowers = []string{top, middle, base}
	return errors.Join(os.WriteFile(filepath.Join(middle, ".wh.again"), nil, 0o644), os.WriteFile(filepath.Join(base, "again", "old"), nil, 0o644))
}

// checkWhiteout refuses a program that merges "again" with the one that is hidden, as
// upstream's version 2 of 4 May 2026 does.
func (m overlayMount) checkWhiteout(program string) error {
	left, err := os.ReadDir(filepath.Join(m.target, "again"))
	if err == nil && len(left) > 0 {
		err = fmt.Errorf("%s shows files that a layer has deleted: install another version of it, or choose driver %q where that works", program, DriverNative)
	}
	return err
}

// probe makes a small overlay below root, has it mounted, deletes a file through it and
// removes it again.
func probe(root string, mount func(overlayMount) error) (err error) {
	dir, err := os.MkdirTemp(root, ".probe")
	if err != nil {
		return err
	}
	m := overlayMount{
		target: filepath.Join(dir, "merged"), upper: filepath.Join(dir, "upper"), work: filepath.Join(dir, "work"),
		lowers: []string{filepath.Join(dir, "top"), filepath.Join(dir, "base")},
	}
	defer func() {
		err = errors.Join(err, unmount(m.target), os.RemoveAll(dir))
	}()
	for _, d := range append([]string{m.target, m.upper, m.work}, m.lowers...) {
		if err := os.Mkdir(d, 0o755); err != nil {
			return err
		}
	}
	for _, f := range []string{"gone", "kept"} {
		if err := os.WriteFile(filepath.Join(m.lowers[1], f), nil, 0o644); err != nil {
			return err
		}
	}
	if err := mount(m); err != nil {
		return err
	}
	if err := os.Remove(filepath.Join(m.target, "kept")); err != nil {
		return fmt.Errorf("delete a file through the overlay: %w", err)
	}
	return nil
}

// checkFormat refuses native mounts over layers that were unpacked for
// fuse-overlayfs: they mark deleted files as ".wh." files, which the kernel
// would show instead of obeying.
func checkFormat(o Options) error {
	for _, root := range append([]string{o.Root}, o.AdditionalStores...) {
		flag, err := readVetted(filepath.Join(root, "overlay", hasMountProgram), maxSmall)
		if err != nil || strings.TrimSpace(string(flag)) != "true" {
			continue
		}
		layers, err := os.Lstat(filepath.Join(root, "overlay-layers", "layers.json"))
		if err != nil || layers.Size() <= int64(len("[]")) {
			if root == o.Root {
				// No layer yet: the store may still become a native one.
				os.Remove(filepath.Join(root, "overlay", hasMountProgram))
			}
			continue
		}
		return fmt.Errorf("the layers in %s were unpacked for fuse-overlayfs: keep driver = %q, or remove its images first", root, DriverFuse)
	}
	return nil
}
