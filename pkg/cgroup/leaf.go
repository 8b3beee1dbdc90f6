package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// EnterLeaf moves every process of f.Root (this one among them) into
// f.Root/LeafName and passes all controllers on to the children of f.Root, so
// that pods can be limited there. It must be called before the daemon unshares
// its PID namespace: processes outside of it could not be moved any more.
// Idempotent. It returns the controllers that could not be passed on, with the
// reason; containers then go without their limits.
func EnterLeaf(f Facts) (missing map[string]error, err error) {
	if f.Driver != DriverCgroupfs {
		return nil, nil
	}
	leaf := filepath.Join(f.Root, LeafName)
	if err := os.Mkdir(leaf, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("make the daemon's own cgroup: %w", err)
	}
	// A process may fork while its siblings are being moved: look again until
	// none is left.
	for range 10 {
		pids, err := readPIDs(f.Root)
		if err != nil {
			return nil, err
		}
		if len(pids) == 0 {
			return enableControllers(f), nil
		}
		for _, pid := range pids {
			err := writeFile(leaf, "cgroup.procs", pid)
			if err != nil && !errors.Is(err, unix.ESRCH) {
				return nil, fmt.Errorf("move process %s to cgroup %s: %w", pid, leaf, err)
			}
		}
	}
	return nil, fmt.Errorf("cgroup %s does not get empty: processes keep appearing in it", f.Root)
}

func enableControllers(f Facts) map[string]error {
	missing := map[string]error{}
	for _, c := range f.Controllers {
		if err := writeFile(f.Root, "cgroup.subtree_control", "+"+c); err != nil {
			missing[c] = err
		}
	}
	return missing
}

func readPIDs(dir string) ([]string, error) {
	b, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil {
		return nil, fmt.Errorf("processes of cgroup: %w", err)
	}
	return strings.Fields(string(b)), nil
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
