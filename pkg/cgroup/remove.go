package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Make makes the pod's cgroup with its parents and passes the controllers on to
// what is below it. Idempotent; nothing happens when cgroups are disabled or
// belong to systemd.
func (p Pod) Make() error {
	if p.delegation.Driver != DriverCgroupfs {
		return nil
	}
	dir := p.delegation.Root
	for part := range strings.SplitSeq(strings.Trim(p.Parent, "/"), "/") {
		dir = filepath.Join(dir, part)
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return fmt.Errorf("make pod cgroup: %w", err)
		}
		if err := passOn(dir, p.delegation.Controllers); err != nil {
			return fmt.Errorf("make pod cgroup: %w", err)
		}
	}
	return nil
}

// passOn lets the children of dir have the controllers. EBUSY: dir holds
// processes itself.
func passOn(dir string, controllers []string) error {
	has := words(dir, "cgroup.subtree_control")
	var add []string
	for _, c := range controllers {
		if !slices.Contains(has, c) {
			add = append(add, "+"+c)
		}
	}
	if len(add) == 0 {
		return nil
	}
	if err := writeFile(dir, "cgroup.subtree_control", strings.Join(add, " ")); err != nil {
		return fmt.Errorf("pass the controllers %q on: %w", add, err)
	}
	return nil
}

// Kill sends SIGKILL to every process in dir and below (cgroup.kill). Idempotent.
func Kill(dir string) error {
	err := writeFile(dir, "cgroup.kill", "1")
	if err == nil || isGone(err) {
		return nil
	}
	return fmt.Errorf("kill the processes of cgroup %s: %w", dir, err)
}

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
		err := removeTree(dir)
		if err == nil || !errors.Is(err, unix.EBUSY) {
			return err
		}
		if late := pause(ctx, wait); late != nil {
			return errors.Join(err, late)
		}
	}
}

func removeTree(dir string) error {
	var dirs []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			if isGone(err) {
				return nil
			}
			return err
		}
		if d.IsDir() {
			dirs = append(dirs, path)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("remove cgroup %s: %w", dir, err)
	}
	for i := len(dirs) - 1; i >= 0; i-- {
		if err := unix.Rmdir(dirs[i]); err != nil && !isGone(err) {
			return fmt.Errorf("remove cgroup %s: %w", dirs[i], err)
		}
	}
	return nil
}

// writeFile writes one value to an existing control file. Control files must not
// be created: a plain os.WriteFile would do so in a directory that is no cgroup.
func writeFile(dir, name, value string) error {
	fd, err := os.OpenFile(filepath.Join(dir, name), os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = fd.WriteString(value)
	return errors.Join(err, fd.Close())
}
