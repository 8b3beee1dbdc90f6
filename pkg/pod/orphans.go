package pod

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/subpod/subpod/pkg/oci"
	"github.com/subpod/subpod/pkg/pod/sandbox"
	"github.com/subpod/subpod/pkg/state"
	"github.com/subpod/subpod/pkg/subpath"
	"github.com/subpod/subpod/storage"
)

// Finding is something that is not as it should be.
type Finding struct {
	Part     string // "state", "images", "orphans"
	What     string
	Repaired bool
	Hint     string // what is left to do, "" for nothing
}

// Checker looks for damage.
type Checker struct {
	State   *state.Store
	Images  *storage.Images
	Orphans *Orphans
}

// Check looks for damage in the records and images, and for things that no record
// knows of. With repair it removes what it can; requests go on meanwhile.
func (c *Checker) Check(ctx context.Context, repair bool) ([]Finding, error) {
	var found []Finding
	for _, fault := range c.State.Check() {
		found = append(found, Finding{Part: "state", What: fault.Error(),
			Hint: "the records are read from memory; \"subpod system reset\" makes a new store"})
	}
	images, err := c.Images.Check(ctx, repair)
	if err != nil {
		return nil, err
	}
	for _, p := range images {
		f := Finding{Part: "images", What: p.Detail, Repaired: p.Removed}
		if p.Image != "" {
			f.What = fmt.Sprintf("image %s %v: %s", p.Image, p.Names, p.Detail)
			f.Hint = "pull it again"
			if !p.Removed {
				f.Hint = "remove the containers that use it, repair, and pull it again"
			}
		}
		found = append(found, f)
	}
	orphans, err := c.Orphans.Find(ctx, repair)
	return append(found, orphans...), err
}

// Orphans finds what no record knows of: processes, root file systems, directories.
type Orphans struct {
	State    *state.Store
	Rootfs   *storage.Rootfs
	Executor *oci.Executor
	// SandboxDir and ContainerDir have a directory for each pod sandbox and container.
	SandboxDir, ContainerDir string
	SubPathDir               string // container.Builder.SubPathDir
}

// Sweep removes what no record knows of, at the server's start, before any request is
// served. It goes on after an error.
func (o *Orphans) Sweep(ctx context.Context) error {
	err := o.Executor.Sweep(ctx, o.knowsContainer) // the processes first: they use the others
	_, left := o.findFiles(ctx, true)
	return errors.Join(err, left, subpath.ReleaseAll(o.SubPathDir))
}

// Find returns what no record knows of, and removes it where remove is set. Things
// are found first and looked up after it: what a request is just making has its record
// before it has anything else. It goes on after an error.
func (o *Orphans) Find(ctx context.Context, remove bool) ([]Finding, error) {
	ids, err := o.Executor.Orphans(ctx, o.knowsContainer, remove)
	var found []Finding
	for _, id := range ids {
		f := Finding{Part: "orphans", What: "container " + id, Repaired: remove && err == nil}
		if remove && err != nil {
			f.Hint = err.Error()
		}
		found = append(found, f)
	}
	files, left := o.findFiles(ctx, remove)
	return append(found, files...), errors.Join(err, left)
}

// findFiles is Find for root file systems and directories.
func (o *Orphans) findFiles(ctx context.Context, remove bool) ([]Finding, error) {
	var found []Finding
	var errs []error
	note := func(what string, release func() error) {
		f := Finding{Part: "orphans", What: what}
		if remove {
			if err := release(); err != nil {
				f.Hint = err.Error()
				errs = append(errs, err)
			} else {
				f.Repaired = true
			}
		}
		found = append(found, f)
	}
	roots, err := o.Rootfs.IDs(ctx)
	errs = append(errs, err)
	for _, id := range roots {
		if !o.knowsContainer(id) {
			note("root file system "+id, func() error { return o.Rootfs.Delete(ctx, id) })
		}
	}
	for _, kind := range []struct {
		name, dir string
		known     func(string) bool
		release   func(string) error
	}{
		{"pod sandbox", o.SandboxDir, o.knowsPod, sandbox.Release},
		{"bundle", o.ContainerDir, o.knowsContainer, func(string) error { return nil }},
	} {
		entries, err := os.ReadDir(kind.dir)
		if err != nil && !os.IsNotExist(err) {
			errs = append(errs, err)
		}
		for _, e := range entries {
			path := filepath.Join(kind.dir, e.Name())
			if kind.known(e.Name()) || gone(path) {
				continue
			}
			note(kind.name+" "+path, func() error { return errors.Join(kind.release(path), os.RemoveAll(path)) })
		}
	}
	return found, errors.Join(errs...)
}

func (o *Orphans) knowsPod(id string) bool       { _, err := o.State.Pod(id); return err == nil }
func (o *Orphans) knowsContainer(id string) bool { _, err := o.State.Container(id); return err == nil }

// gone reports whether a request has removed the path meanwhile.
func gone(path string) bool {
	_, err := os.Lstat(path)
	return errors.Is(err, os.ErrNotExist)
}
