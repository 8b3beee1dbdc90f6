package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
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
