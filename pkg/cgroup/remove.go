package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Make makes the pod's cgroup with its parents and passes the controllers on to
// it. Idempotent; nothing happens when cgroups are disabled or belong to systemd.
func (p Pod) Make() error {
	if p.facts.Driver != DriverCgroupfs {
		return nil
	}
	dir := p.facts.Root
	for part := range strings.SplitSeq(strings.Trim(p.Parent, "/"), "/") {
		dir = filepath.Join(dir, part)
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return fmt.Errorf("make pod cgroup: %w", err)
		}
		// A controller that cannot be passed on costs only its own limits; the
		// OCI runtime names the one that it misses.
		for _, c := range p.facts.Controllers {
			_ = writeFile(dir, "cgroup.subtree_control", "+"+c)
		}
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
// processes that are about to leave. Idempotent. It refuses a directory that is
// not inside of f.Root.
func (f Facts) Remove(ctx context.Context, dir string) error {
	rel, err := filepath.Rel(f.Root, dir)
	if f.Root == "" || err != nil || rel == "." || rel == ".." || strings.HasPrefix(rel, "../") {
		return fmt.Errorf("remove cgroup %q: not below %q", dir, f.Root)
	}
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		err := removeTree(dir)
		if err == nil || !errors.Is(err, unix.EBUSY) {
			return err
		}
		select {
		case <-ctx.Done():
			return errors.Join(err, ctx.Err())
		case <-time.After(wait):
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
