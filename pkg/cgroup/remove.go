package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
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
