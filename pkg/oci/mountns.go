package oci

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/moby/sys/mountinfo"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// A container's mount namespace begins as a copy of the one that its runtime runs in, and
// runtimes read the list of its mounts. In the node's there are five for each pod, so a
// runtime is started in a namespace of its own, which has those of its pod only:
//
//	the node                    the template             the start of a container
//	/            shared         /      in its peer group /      in its peer group
//	  DIR        private          DIR                      DIR
//	    DIR      shared                                      ID    clone of the node's
//	      ID     mounts of one pod or container
//
// What is mounted elsewhere, such as a kubelet's volumes, is seen in all three, and what a
// container mounts for others is seen in the node, since all are peers (mount_namespaces(7)).
// The template is a copy of the node's namespace without the upper DIR and what is
// mounted there. The lower DIR is private, and what is above it is made private in the copy
// first, so that taking it away there takes nothing away in the node. The third is a copy of
// the template, and exists until its container is created: nothing has to be removed from
// it, also when the server is killed.
//
// The upper DIR is shared, so that a container with a hostPath of / that was created in the node's
// namespace loses what is unmounted in the node, and keeps no file system of a pod alive.

// ErrMounted says that something is mounted below a directory already, by a server of an
// earlier version.
var ErrMounted = errors.New("something is mounted below it already")

// KeepMounts makes dir, which is made if it is missing, a place whose mounts can be left out of a
// copy of the mount namespace. Idempotent in one mount namespace. ErrMounted.
func KeepMounts(dir string) error {
	err := os.MkdirAll(dir, 0o711)
	if err == nil {
		dir, err = filepath.EvalSymlinks(dir)
	}
	if err != nil {
		return err
	}
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, dir, unix.AT_SYMLINK_NOFOLLOW, 0, &st); err != nil {
		return fmt.Errorf("statx %s: %w", dir, err)
	}
	if st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0 {
		return nil
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
		if err != nil {
			return err
		}
		if len(mounts) > 0 {
			return fmt.Errorf("%s: %w", dir, ErrMounted)
		}
	}
	made := 0
	for _, m := range []struct {
		source string
		flags  uintptr
	}{{dir, unix.MS_BIND}, {"", unix.MS_PRIVATE}, {dir, unix.MS_BIND}, {"", unix.MS_SHARED}} {
		if err := unix.Mount(m.source, dir, "", m.flags, ""); err != nil {
			for range made { // a private one alone would keep pods' mounts from those who share them
				err = errors.Join(err, unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW))
			}
			return fmt.Errorf("mount %s on itself: %w", dir, err)
		}
		if m.source != "" {
			made++
		}
	}
	return nil
}

// mountNamespaces makes the namespaces that runtimes are started in.
type mountNamespaces struct {
	kept     [][2]string // KeepMounts: as the directory is called, and links followed
	nsenter  string
	template func() (*os.File, error)
	from     int // how many entries the directories have when it is worth its while
}

// manyMounts is how many pods and containers make a copy of all mounts slower than the start
// of nsenter(1), which takes a millisecond or two: those of 50 pods.
const manyMounts = 100

// newMountNamespaces returns nil, without an error, where nothing is kept.
func newMountNamespaces(kept []string) (*mountNamespaces, error) {
	if len(kept) == 0 {
		return nil, nil
	}
	nsenter, err := lookPath("nsenter")
	if err != nil {
		return nil, err
	}
	n := &mountNamespaces{nsenter: nsenter, from: manyMounts}
	for _, dir := range kept {
		real, err := filepath.EvalSymlinks(dir)
		if err != nil {
			return nil, err
		}
		n.kept = append(n.kept, [2]string{dir, real})
	}
	n.template = sync.OnceValues(n.makeTemplate)
	return n, nil
}

// worthwhile reports whether the directories have many entries. A directory has a link for each
// one in it, but on file systems that do not count them, where it has one.
func (n *mountNamespaces) worthwhile() bool {
	if n == nil {
		return false
	}
	entries := 0
	for _, dir := range n.kept {
		var st unix.Stat_t
		if unix.Stat(dir[1], &st) != nil {
			continue
		}
		if st.Nlink < 2 {
			return true
		}
		entries += int(st.Nlink) - 2
	}
	return entries >= n.from
}

func (n *mountNamespaces) makeTemplate() (template *os.File, err error) {
	err = onOwnThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
			return os.NewSyscallError("unshare", err)
		}
		for _, dir := range n.kept {
			if err := takeAway(dir[1]); err != nil {
				return err
			}
		}
		template, err = os.Open("/proc/thread-self/ns/mnt")
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("make a mount namespace without the pods' mounts: %w", err)
	}
	return template, nil
}

// takeAway unmounts what KeepMounts has mounted last, with all below it.
func takeAway(dir string) error {
	mounts, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) { return m.Mountpoint != dir, false })
	if err != nil {
		return err
	}
	// Under a shared mount it would be taken away from the node, too.
	n := len(mounts)
	if n < 2 || mounts[n-1].Parent != mounts[n-2].ID || strings.Contains(mounts[n-2].Optional, "shared:") {
		return fmt.Errorf("what is mounted on %s is not what was mounted there", dir)
	}
	// Else what is below it would be unmounted in its peers as well.
	if err := unix.Mount("", dir, "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("make the mounts on %s private: %w", dir, err)
	}
	if err := unix.Unmount(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
		return fmt.Errorf("unmount %s: %w", dir, err)
	}
	return nil
}

// forSpec returns a namespace for the runtime that creates a container. It has those kept
// mounts that the specification names.
func (n *mountNamespaces) forSpec(spec *specs.Spec) (ns *os.File, err error) {
	template, err := n.template()
	if err != nil {
		return nil, err
	}
	err = onOwnThread(func() error {
		ns, err = n.copy(template, n.named(spec))
		return err
	})
	return ns, err
}

// copy makes the calling thread's mount namespace a copy of the template with the mounts at
// and below paths. The thread is of no other use then.
func (n *mountNamespaces) copy(template *os.File, paths []string) (*os.File, error) {
	trees := make([]int, 0, len(paths))
	defer func() {
		for _, tree := range trees {
			unix.Close(tree)
		}
	}()
	for _, path := range paths {
		tree, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW|unix.AT_RECURSIVE)
		if err != nil {
			return nil, fmt.Errorf("clone the mounts of %s: %w", path, err)
		}
		trees = append(trees, tree)
	}
	if err := unix.Unshare(unix.CLONE_FS); err != nil { // setns(2) refuses threads that share it
		return nil, os.NewSyscallError("unshare", err)
	}
	if err := unix.Setns(int(template.Fd()), unix.CLONE_NEWNS); err != nil {
		return nil, fmt.Errorf("enter the mount namespace without the pods' mounts: %w", err)
	}
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return nil, os.NewSyscallError("unshare", err)
	}
	for i, path := range paths {
		if err := unix.MoveMount(trees[i], "", unix.AT_FDCWD, path, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
			return nil, fmt.Errorf("mount what is on %s: %w", path, err)
		}
	}
	return os.Open("/proc/thread-self/ns/mnt")
}

// named returns what of the kept mounts a specification names: the entries of the kept
// directories.
func (n *mountNamespaces) named(spec *specs.Spec) []string {
	var found []string
	add := func(path string) {
		for _, dir := range n.kept {
			below, ok := strings.CutPrefix(filepath.Clean(path), dir[0]+"/")
			if !ok {
				below, ok = strings.CutPrefix(filepath.Clean(path), dir[1]+"/")
			}
			if !ok {
				continue
			}
			name, _, _ := strings.Cut(below, "/")
			if entry := filepath.Join(dir[1], name); !slices.Contains(found, entry) {
				found = append(found, entry)
			}
		}
	}
	add(spec.Root.Path)
	for _, m := range spec.Mounts {
		add(m.Source)
	}
	for _, ns := range spec.Linux.Namespaces {
		add(ns.Path)
	}
	return found
}

// mountsLink is in a bundle and leads to the mount namespace that the runtime is started in.
const mountsLink = "mounts"

// createArgv is the command line that creates a container, up to the runtime's own arguments.
func (p *Pending) createArgv() []string {
	argv := p.rt.argv()
	if !p.apart {
		return argv
	}
	return append([]string{p.e.mounts.nsenter, "--mount=" + filepath.Join(p.spec.Bundle, mountsLink), "--"}, argv...)
}

// enterMounts makes the namespace that createArgv enters: the server's own where there can be
// no better one.
func (p *Pending) enterMounts(spec *specs.Spec) error {
	if !p.apart {
		return nil
	}
	to := fmt.Sprintf("/proc/%d/ns/mnt", os.Getpid())
	ns, err := p.e.mounts.forSpec(spec)
	if err == nil {
		p.mounts, to = ns, fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), fdOf(ns))
	} else if p.e.mountsFailed.CompareAndSwap(false, true) {
		p.e.log.Warn("containers are created in the node's mount namespace, which takes longer the more pods there are (said once)", "error", err)
	}
	return linkTo(filepath.Join(p.spec.Bundle, mountsLink), to)
}
