package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Remove removes the cgroup dir with all below it. It waits, until ctx ends, for
// processes that are about to leave. A container's goes with its scope, and a slice
// is stopped, so that systemd forgets both. Idempotent, also for what was made under
// another driver and went with its node. It refuses a directory that is there and not
// inside of d.Root; with cgroups disabled it does nothing.
func (d Delegation) Remove(ctx context.Context, dir string) error {
	rel, err := filepath.Rel(d.Root, dir)
	inside := err == nil && filepath.IsLocal(rel) && rel != "."
	switch {
	case d.Root == "" || !inside && dir != "" && !exists(dir):
		return nil
	case !inside:
		return fmt.Errorf("remove cgroup %q: not below %q", dir, d.Root)
	}
	if d.Driver == DriverSystemd {
		if filepath.Base(dir) == scopeContainer {
			dir = filepath.Dir(dir)
		} else if slice := filepath.Base(dir); strings.HasSuffix(slice, ".slice") {
			if err := stopSlice(ctx, slice); err != nil {
				return err
			}
		}
	}
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		err := removeTree(ctx, dir)
		if err == nil || !errors.Is(err, unix.EBUSY) {
			return err
		}
		if late := pause(ctx, wait); late != nil {
			return errors.Join(err, late)
		}
	}
}

// removeTree removes a cgroup and all below it. Idempotent. It ends with ctx, also where
// others make more of them meanwhile.
func removeTree(ctx context.Context, dir string) error {
	parent, err := os.Open(filepath.Dir(dir))
	if err == nil {
		r := remover{ctx: ctx, at: parent}
		err = r.remove(filepath.Base(dir))
		r.at.Close()
	}
	if err != nil && !isGone(err) {
		return fmt.Errorf("remove cgroup %s: %w", dir, err)
	}
	return nil
}

// remover goes up and down in a tree of cgroups and keeps open only the one where it is: a
// privileged container makes them deeper than a path may be long.
type remover struct {
	ctx context.Context
	at  *os.File
}

// remove removes name in the cgroup where r is, and all below it.
func (r *remover) remove(name string) error {
	err := unix.Unlinkat(int(r.at.Fd()), name, unix.AT_REMOVEDIR)
	if !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENOTEMPTY) {
		return err
	}
	if err := r.enter(name); err != nil {
		return err
	}
	err = r.clear()
	if up := r.enter(".."); err != nil || up != nil {
		return errors.Join(err, up)
	}
	return unix.Unlinkat(int(r.at.Fd()), name, unix.AT_REMOVEDIR)
}

// clear removes what is below the cgroup where r is.
func (r *remover) clear() error {
	entries, err := r.at.ReadDir(-1)
	for _, entry := range entries {
		if err := r.ctx.Err(); err != nil {
			return err
		}
		if !entry.IsDir() {
			continue
		}
		if err := r.remove(entry.Name()); err != nil && !isGone(err) {
			return err
		}
	}
	return err
}

// enter goes to a cgroup below the one where r is, or to the one above it.
func (r *remover) enter(name string) error {
	fd, err := unix.Openat(int(r.at.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	r.at.Close()
	r.at = os.NewFile(uintptr(fd), "cgroup")
	return nil
}
