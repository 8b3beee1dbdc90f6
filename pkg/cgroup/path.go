package cgroup

import (
	"fmt"
	"path"
	"path/filepath"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/subpod/subpod/pkg/errclass"
)

// ErrBadParent says that a cgroup_parent cannot be used with the driver.
var ErrBadParent = errclass.New(errdefs.ErrInvalidArgument, "bad cgroup parent")

// defaultParent is where pods without a cgroup_parent go. With systemd each has a
// slice below that of the same name.
const (
	defaultParent = "/subpod"
	slicePrefix   = "subpod-"
	scopePrefix   = "subpod"
)

// Pod says where a pod's containers go.
type Pod struct {
	// Parent is the cgroup path below the delegated root (cgroupfs), or the name
	// of a slice (systemd).
	Parent string
	// Dir is the pod's directory; "" when cgroups are disabled.
	Dir string

	delegation Delegation
}

// PodPath places a pod. parent is LinuxPodSandboxConfig.cgroup_parent: a path in
// cgroupfs syntax, of which the systemd driver takes the last element, a slice.
// With a parent (a kubelet made it) the pod's cgroup is the parent itself; without
// one it is made under the delegated root. ErrBadParent when the driver cannot use
// it. With cgroups disabled every parent is accepted and unused; the caller has
// said so once, with Delegation.Reason.
func (d Delegation) PodPath(parent, podID string) (Pod, error) {
	if !d.Enabled() {
		return Pod{delegation: d}, nil
	}
	if len(parent) > 4096 || strings.ContainsAny(parent, "\x00\n") || hasDotDot(parent) {
		return Pod{}, fmt.Errorf("%w: %q", ErrBadParent, parent)
	}
	if d.Driver == DriverSystemd {
		return d.slicePath(parent, podID)
	}
	if parent == "" {
		parent = path.Join(defaultParent, podID)
	}
	parent = path.Clean("/" + parent)
	// A kubelet outside of the delegated subtree's cgroup namespace names it from
	// the top.
	if rel, ok := strings.CutPrefix(parent, d.rootPath()+"/"); ok && d.rootPath() != "/" {
		parent = "/" + rel
	}
	return Pod{Parent: parent, Dir: filepath.Join(d.Root, parent), delegation: d}, nil
}

func (d Delegation) slicePath(parent, podID string) (Pod, error) {
	slice := slicePrefix + podID + ".slice"
	if parent != "" {
		slice = path.Base(parent)
	}
	name, ok := strings.CutSuffix(slice, ".slice")
	if !ok || name == "" || strings.HasPrefix(name, "-") || strings.HasSuffix(name, "-") || strings.Contains(name, "--") {
		return Pod{}, fmt.Errorf("%w: %q: the systemd driver wants the name of a slice", ErrBadParent, parent)
	}
	// "a-b.slice" lies in "a.slice" (systemd.slice(5)).
	dir := d.Root
	for i, r := range name + "-" {
		if r == '-' {
			dir = filepath.Join(dir, name[:i]+".slice")
		}
	}
	return Pod{Parent: slice, Dir: dir, delegation: d}, nil
}

// Container returns the OCI cgroupsPath of a container in the pod, and the
// directory that it will have; both "" when cgroups are disabled. With the systemd
// driver too the path is one of the file system: see Place.
func (p Pod) Container(id string) (cgroupsPath, dir string) {
	switch p.delegation.Driver {
	case DriverSystemd:
		dir = filepath.Join(p.Dir, scopeName(id), scopeContainer)
	case DriverCgroupfs:
		dir = filepath.Join(p.Dir, id)
	default:
		return "", ""
	}
	return strings.TrimPrefix(dir, Mount), dir
}

// rootPath is Root as the OCI runtime names it: from the top of the mount.
func (d Delegation) rootPath() string {
	return path.Clean("/" + strings.TrimPrefix(d.Root, Mount))
}

func hasDotDot(p string) bool {
	for part := range strings.SplitSeq(p, "/") {
		if part == ".." {
			return true
		}
	}
	return false
}
