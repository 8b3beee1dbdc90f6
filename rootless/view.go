package rootless

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// viewDir is where the parent puts the node's root directory together. It is not in
// nodeDir, which is removed with all in it by processes that see what is mounted here.
func viewDir(runDir string) string { return filepath.Join(runDir, "view") }

// systemDirs are shown as they are; where one is a link on the host it is a link.
var systemDirs = []string{"/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/sys",
	"/nix", "/gnu", "/run/current-system", "/run/wrappers", "/run/opengl-driver"}

// shownDevices are patterns: what every container has, what the node's programs open,
// and what computes. Terminals, shared memory, input, sound and cameras are the
// user's; a container that names one gets it through the broker.
var shownDevices = []string{"null", "zero", "full", "random", "urandom", "tty", "fuse", "net", "kvm", "vhost-*",
	"dri", "kfd", "accel", "dxg", "nvidia*", "infiniband"}

// nodePrograms are run by the node's own processes, beside Config.Programs.
var nodePrograms = []string{"ip", "nft", "iptables", "nsenter", "mount", "umount"}

// maxLinks bounds how many symbolic links lead to one file (path_resolution(7)).
const maxLinks = 40

// viewBuilder puts the root directory of a node with ViewMinimal together. It works in
// the outer mount namespace: the node's is made as a copy of that in a user namespace
// below, which locks each mount and its read-only flag (mount_namespaces(7)).
type viewBuilder struct {
	root  string
	shown []string // host paths that are in it, links followed
	own   int      // clone of the run directory, from before root was mounted in it
	wants []want
	c     Config
}

// want is a host's path, links followed, that is to be in the view. They are mounted
// from the outside in: one may lie in another and have other attributes.
type want struct {
	real string
	attr uint64
}

// buildView mounts the node's root directory at viewDir. Nothing of the host is
// changed but that missing directories of the configuration are made.
//
// It returns the host's paths that are in it.
func buildView(c Config) (seen []string, err error) {
	v := &viewBuilder{root: viewDir(c.RunDir), c: c, own: -1}
	if v.own, err = cloneTree(c.RunDir, 0); err != nil {
		return nil, err
	}
	defer unix.Close(v.own)
	if err := os.MkdirAll(v.root, 0o755); err != nil {
		return nil, err
	}
	if err := unix.Mount("tmpfs", v.root, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return nil, fmt.Errorf("mount the node's root directory: %w", err)
	}
	for _, step := range []func() error{v.system, v.devices, v.copies, v.ownDirs, v.configuration, v.programs, v.attachWants, v.empty} {
		if err := step(); err != nil {
			return nil, fmt.Errorf("put the node's root directory together: %w", err)
		}
	}
	return v.shown, nil
}

// cloneTree clones the mount at path with all below it, with more attributes.
func cloneTree(path string, attr uint64) (int, error) {
	tree, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return -1, fmt.Errorf("clone the mount of %s: %w", path, err)
	}
	if attr != 0 {
		err = unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: attr})
	}
	if err != nil {
		unix.Close(tree)
		return -1, fmt.Errorf("set the attributes of the mount of %s: %w", path, err)
	}
	return tree, nil
}

// show makes path lead to the host's file: the links on the way are links, and what
// they lead to is mounted at its own place. A missing one is no error.
func (v *viewBuilder) show(path string, attr uint64) error {
	real, err := v.resolve(path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return nil
	}
	if err != nil || v.isShown(real) {
		return err
	}
	tree, err := cloneTree(real, attr)
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	return v.attach(tree, real)
}

// attach mounts a tree at the host's path real.
func (v *viewBuilder) attach(tree int, real string) error {
	target := filepath.Join(v.root, real)
	var st unix.Stat_t
	if err := unix.Fstat(tree, &st); err != nil {
		return err
	}
	if err := makeMountPoint(target, st.Mode&unix.S_IFMT == unix.S_IFDIR); err != nil {
		return err
	}
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount %s in the node's root directory: %w", real, err)
	}
	v.shown = append(v.shown, real)
	return nil
}

func makeMountPoint(path string, isDir bool) error {
	if isDir {
		return os.MkdirAll(path, 0o755)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}

// isShown reports whether a path without links is in the view already.
func (v *viewBuilder) isShown(real string) bool {
	return slices.ContainsFunc(v.shown, func(dir string) bool { return within(real, dir) })
}

// within reports whether path is dir or lies below it, as text.
func within(path, dir string) bool {
	return path == dir || dir == "/" || strings.HasPrefix(path, dir+"/")
}

// resolve follows the links of a host's path and makes the same ones in the view.
func (v *viewBuilder) resolve(path string) (string, error) {
	at := "/"
	rest := strings.Split(strings.Trim(filepath.Clean(path), "/"), "/")
	for links := 0; len(rest) > 0; {
		next := filepath.Join(at, rest[0])
		target, err := os.Readlink(next)
		if errors.Is(err, unix.EINVAL) {
			at, rest = next, rest[1:] // no link
			continue
		}
		if err != nil {
			return "", err
		}
		if links++; links > maxLinks {
			return "", &os.PathError{Op: "resolve", Path: path, Err: unix.ELOOP}
		}
		if err := v.link(target, next); err != nil {
			return "", err
		}
		if filepath.IsAbs(target) {
			at = "/"
		}
		rest = append(strings.Split(strings.Trim(filepath.Clean(target), "/"), "/"), rest[1:]...)
		for len(rest) > 0 && (rest[0] == "" || rest[0] == ".." || rest[0] == ".") {
			if rest[0] == ".." {
				at = filepath.Dir(at)
			}
			rest = rest[1:]
		}
	}
	return at, nil
}

func (v *viewBuilder) link(target, name string) error {
	if v.isShown(filepath.Dir(name)) {
		return nil
	}
	name = filepath.Join(v.root, name)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	if err := os.Symlink(target, name); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

func (v *viewBuilder) system() error {
	for _, dir := range systemDirs {
		if err := v.show(dir, 0); err != nil {
			return err
		}
	}
	return nil
}

// devices fills /dev; what is mounted there belongs to the node (mountOwn).
func (v *viewBuilder) devices() error {
	for _, pattern := range shownDevices {
		found, _ := filepath.Glob(filepath.Join("/dev", pattern))
		for _, path := range found {
			if err := v.show(path, 0); err != nil {
				return err
			}
		}
	}
	for name, target := range map[string]string{"fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2", "ptmx": "pts/ptmx"} {
		if err := v.link(target, filepath.Join("/dev", name)); err != nil {
			return err
		}
	}
	return nil
}

// copies makes the copied-up directories: of the machine's configuration and added
// programs with links to the host's files, which may be replaced while the node lives;
// of the machine's state without.
func (v *viewBuilder) copies() error {
	for _, dir := range append(slices.Clone(v.c.CopyUp), "/etc") {
		up := filepath.Join(v.root, dir)
		if err := os.MkdirAll(up, 0o755); err != nil {
			return err
		}
		if dir == "/run" || within(dir, "/var") || v.isShown(filepath.Join(dir, hostView)) {
			continue
		}
		tree, err := cloneTree(dir, unix.MOUNT_ATTR_RDONLY)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		err = v.attach(tree, filepath.Join(dir, hostView))
		unix.Close(tree)
		if err == nil {
			v.shown = append(v.shown, dir)
			err = (&copiedDir{dir: up}).link(up)
		}
		if err != nil {
			return err
		}
	}
	for _, dir := range writable {
		up := &copiedDir{dir: filepath.Join(v.root, topDir(dir))}
		if err := up.makeReal(filepath.Join(v.root, dir)); err != nil {
			return err
		}
	}
	return nil
}

// topDir is the copied-up directory that holds one of the writable ones.
func topDir(dir string) string {
	for _, up := range DefaultCopyUp() {
		if within(dir, up) {
			return up
		}
	}
	return "/"
}

// want has attachWants show path. A missing one is no error.
func (v *viewBuilder) want(path string, attr uint64) error {
	real, err := v.resolve(path)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return nil
	}
	if err == nil {
		v.wants = append(v.wants, want{real, attr})
	}
	return err
}

func (v *viewBuilder) attachWants() error {
	// Of one path the first entry counts: what is to be writable comes first.
	slices.SortStableFunc(v.wants, func(a, b want) int { return strings.Compare(a.real, b.real) })
	var made []want
	for _, w := range v.wants {
		around := want{real: "/"}
		for _, m := range made {
			if within(w.real, m.real) {
				around = m // the innermost comes last
			}
		}
		if w.real == around.real || around.real != "/" && w.attr == around.attr || around.real == "/" && v.isShown(w.real) {
			continue
		}
		tree, err := v.clone(w)
		if err != nil {
			return err
		}
		err = v.attach(tree, w.real)
		unix.Close(tree)
		if err != nil {
			return err
		}
		made = append(made, w)
	}
	return nil
}

func (v *viewBuilder) clone(w want) (int, error) {
	if real, err := filepath.EvalSymlinks(v.c.RunDir); err == nil && w.real == real && w.attr == 0 {
		return unix.FcntlInt(uintptr(v.own), unix.F_DUPFD_CLOEXEC, 0)
	}
	return cloneTree(w.real, w.attr)
}

// ownDirs shows what the node writes: the run and the data directory and Config.Writable,
// and the configured mounts at their places.
func (v *viewBuilder) ownDirs() error {
	for _, dir := range append([]string{v.c.RunDir, v.c.DataDir}, v.c.Writable...) {
		if err := v.want(dir, 0); err != nil {
			return err
		}
	}
	if err := v.want(outsideDir(v.c.RunDir), unix.MOUNT_ATTR_RDONLY); err != nil {
		return err
	}
	for _, b := range v.c.Binds {
		if err := os.MkdirAll(b.Source, 0o755); err != nil {
			return fmt.Errorf("make the source of the mount on %s: %w", b.Target, err)
		}
		var attr uint64
		if b.ReadOnly {
			attr = unix.MOUNT_ATTR_RDONLY
		}
		tree, err := cloneTree(b.Source, attr)
		if err != nil {
			return err
		}
		up := &copiedDir{dir: filepath.Join(v.root, topDir(b.Target))}
		if up.dir != v.root {
			err = up.makeReal(filepath.Join(v.root, filepath.Dir(b.Target)))
		}
		if err == nil {
			err = v.attach(tree, b.Target)
		}
		unix.Close(tree)
		if err != nil {
			return err
		}
	}
	return nil
}

// configuration shows what the server reads of the user's, read-only: an escape must
// not write what is read and executed outside. Links in a directory lead out of it.
func (v *viewBuilder) configuration() error {
	paths := slices.Clone(v.c.Shown)
	if real, err := filepath.EvalSymlinks("/etc/resolv.conf"); err == nil && !within(real, "/etc") {
		paths = append(paths, filepath.Dir(real))
	}
	for _, path := range paths {
		if v.isHome(path) {
			return fmt.Errorf("%s holds the user's files: it cannot be shown as configuration", path)
		}
		if err := v.want(path, unix.MOUNT_ATTR_RDONLY); err != nil {
			return err
		}
		entries, _ := os.ReadDir(path)
		for _, e := range entries {
			if e.Type()&fs.ModeSymlink == 0 {
				continue
			}
			if real, err := filepath.EvalSymlinks(filepath.Join(path, e.Name())); err == nil && !v.isHome(real) {
				if err := v.want(real, unix.MOUNT_ATTR_RDONLY); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// isHome reports whether a directory is the user's home or holds it.
func (v *viewBuilder) isHome(dir string) bool {
	home := filepath.Clean(os.Getenv("HOME"))
	if real, err := filepath.EvalSymlinks(home); err == nil && within(real, dir) {
		return true
	}
	return within(home, dir)
}

// programs shows the directories of the programs that the node runs, read-only. Of
// one that lies in the home itself only the file is shown: the next one of that name
// comes with the next node.
func (v *viewBuilder) programs() error {
	names := append(slices.Clone(nodePrograms), v.c.Programs...)
	names = append(names, v.c.Server[0], monitorProgram(v.c))
	if exe, err := os.Executable(); err == nil {
		names = append(names, exe)
	}
	for _, name := range names {
		path, err := exec.LookPath(name)
		if err != nil {
			continue // who needs it complains
		}
		real, err := filepath.EvalSymlinks(path)
		if err != nil {
			continue
		}
		for _, file := range []string{path, real} {
			if dir := filepath.Dir(file); !v.isHome(dir) {
				file = dir
			}
			if err := v.want(file, unix.MOUNT_ATTR_RDONLY); err != nil {
				return err
			}
		}
	}
	return nil
}

// empty makes the directories that programs expect, and mount points of the node.
func (v *viewBuilder) empty() error {
	for dir, mode := range map[string]fs.FileMode{
		"/proc": 0o555, "/tmp": 0o777 | fs.ModeSticky, "/var/tmp": 0o777 | fs.ModeSticky, "/root": 0o700, "/mnt": 0o755,
		"/dev/pts": 0o755, "/dev/shm": 0o777 | fs.ModeSticky, "/dev/mqueue": 0o755, "/var/cache": 0o755,
		filepath.Clean("/" + os.Getenv("HOME")): 0o700, "/run/lock": 0o755,
	} {
		path := filepath.Join(v.root, dir)
		if err := os.MkdirAll(path, 0o755); err != nil {
			return err
		}
		if err := os.Chmod(path, mode); err != nil {
			return err
		}
	}
	for name, target := range map[string]string{"/var/run": "/run", "/var/lock": "/run/lock"} {
		if err := v.link(target, name); err != nil {
			return err
		}
	}
	return nil
}
