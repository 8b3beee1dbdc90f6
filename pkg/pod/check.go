package pod

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/subpod/subpod/netns"
)

// Finding is something that is not as it should be.
type Finding struct {
	Part     string // "state", "images", "orphans"
	What     string
	Repaired bool
	Hint     string // what is left to do, "" for nothing
}

// Check looks for damage in the records and images, and for things that no record
// knows of. With repair it removes what it can; requests go on meanwhile.
func (r *Runtime) Check(ctx context.Context, repair bool) ([]Finding, error) {
	var found []Finding
	for _, fault := range r.State.Check() {
		found = append(found, Finding{Part: "state", What: fault.Error(),
			Hint: "the records are read from memory; \"subpod system reset\" makes a new store"})
	}
	images, err := r.Images.Check(ctx, repair)
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
	orphans, err := r.orphans(ctx, repair)
	return append(found, orphans...), err
}

// orphans finds what no record knows of. Things are found first and looked up after
// it: what a request is just making has its record before it has anything else.
func (r *Runtime) orphans(ctx context.Context, remove bool) (found []Finding, err error) {
	note := func(what string, release func() error) {
		f := Finding{Part: "orphans", What: what}
		if remove {
			if err := release(); err != nil {
				f.Hint = err.Error()
			} else {
				f.Repaired = true
			}
		}
		found = append(found, f)
	}
	knownPod := func(id string) bool { _, err := r.State.Pod(id); return err == nil }
	known := func(id string) bool { _, err := r.State.Container(id); return err == nil }
	ids, err := r.Executor.Orphans(ctx, known, remove)
	for _, id := range ids {
		note("container "+id, func() error { return err })
	}
	roots, rootsErr := r.Rootfs.IDs(ctx)
	for _, id := range roots {
		if !known(id) {
			note("root file system "+id, func() error { return r.Rootfs.Delete(ctx, id) })
		}
	}
	for _, kind := range []struct {
		name, dir string
		known     func(string) bool
		release   func(string) error
	}{
		{"pod sandbox", "pods", knownPod, releasePod},
		{"bundle", "containers", known, func(string) error { return nil }},
	} {
		entries, readErr := os.ReadDir(filepath.Join(r.RunDir, kind.dir))
		if readErr != nil && !os.IsNotExist(readErr) {
			err = errors.Join(err, readErr)
		}
		for _, e := range entries {
			path := filepath.Join(r.RunDir, kind.dir, e.Name())
			if kind.known(e.Name()) || gone(path) {
				continue
			}
			note(kind.name+" "+path, func() error {
				return errors.Join(kind.release(path), os.RemoveAll(path))
			})
		}
	}
	return found, errors.Join(err, rootsErr)
}

// gone reports whether a request has removed the path meanwhile.
func gone(path string) bool {
	_, err := os.Lstat(path)
	return errors.Is(err, os.ErrNotExist)
}

// releasePod frees what holds a pod sandbox's directory.
func releasePod(dir string) error {
	return errors.Join(unmount(filepath.Join(dir, "shm")), netns.Unpin(dir))
}
