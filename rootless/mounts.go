package rootless

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// writable are directories below the copied-up ones that a kubelet, CNI
// plugins or their installers write to. A link to the host's directory would
// not let them.
var writable = []string{
	"/etc/cni", "/etc/cni/net.d", "/etc/kubernetes",
	"/opt/cni", "/opt/cni/bin",
	"/run/netns",
	"/var/lib/cni", "/var/lib/etcd", "/var/lib/kubelet",
	"/var/log/containers", "/var/log/pods",
}

// mountNode gives the node its view of the file system. It runs once, as PID 1,
// in a mount namespace of its own, and leaves / shared within it, so that
// mounts propagate to and from containers that ask for it.
func mountNode(c Config, copyUp []string, ownCgroupNS bool) error {
	var ups []*copiedDir
	for _, dir := range copyUp {
		up, err := copyUpDir(dir)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		ups = append(ups, up)
	}
	for _, dir := range writable {
		if err := makeReal(ups, dir); err != nil {
			return err
		}
	}
	for _, dir := range keptDirs(c) {
		if err := keep(ups, dir); err != nil {
			return err
		}
	}
	for _, b := range c.Binds {
		err := mountBind(ups, b)
		if errors.Is(err, os.ErrNotExist) && slices.Contains(DefaultBinds(c.DataDir), b) {
			continue // a small image of a container has no /var/lib, and no kubelet
		}
		if err != nil {
			return err
		}
	}
	if err := mountCgroup(detectCgroup(), ownCgroupNS); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("make / shared in the node: %w", err)
	}
	return nil
}

// keptDirs are the directories that must be the same in the node and on the
// host under the same name, not behind a link: sockets, the store and the
// user's own files.
func keptDirs(c Config) []string {
	dirs := []string{c.RunDir, c.DataDir}
	for _, v := range []string{"XDG_RUNTIME_DIR", "HOME"} {
		if d := os.Getenv(v); filepath.IsAbs(d) {
			dirs = append([]string{filepath.Clean(d)}, dirs...)
		}
	}
	for _, b := range c.Binds {
		dirs = append(dirs, b.Source)
	}
	return dirs
}

// keep binds the host's dir onto its own name below a copied-up directory. It
// does nothing where no copy-up has hidden it, or an outer kept directory
// already shows it.
func keep(ups []*copiedDir, dir string) error {
	up := upFor(ups, dir)
	if up == nil {
		return nil
	}
	for _, k := range up.kept {
		if dir == k || strings.HasPrefix(dir, k+"/") {
			return nil
		}
	}
	host := up.hostPath(dir)
	if st, err := os.Stat(host); err != nil || !st.IsDir() || dir == up.dir {
		return err
	}
	if err := up.makeReal(dir); err != nil {
		return err
	}
	if err := unix.Mount(host, dir, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("mount %s on %s: %w", host, dir, err)
	}
	up.kept = append(up.kept, dir)
	return nil
}

func mountBind(ups []*copiedDir, b Bind) error {
	if err := os.MkdirAll(b.Source, 0o755); err != nil {
		return fmt.Errorf("make the source of the mount on %s: %w", b.Target, err)
	}
	if err := makeReal(ups, b.Target); err != nil {
		return err
	}
	if err := unix.Mount(b.Source, b.Target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("mount %s on %s: %w", b.Source, b.Target, err)
	}
	if !b.ReadOnly {
		return nil
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
	if err := unix.MountSetattr(unix.AT_FDCWD, b.Target, unix.AT_RECURSIVE, &attr); err != nil {
		return fmt.Errorf("make %s read-only: %w", b.Target, err)
	}
	return nil
}

// makeReal makes dir a directory of the node's own if a copied-up one holds it.
func makeReal(ups []*copiedDir, dir string) error {
	if up := upFor(ups, dir); up != nil {
		return up.makeReal(dir)
	}
	return nil
}

// checkProc makes sure that /proc shows our PID namespace: a container that
// masks parts of /proc may not mount a fresh one (mount_namespaces(7)).
func checkProc() error {
	self, err := os.Readlink("/proc/self")
	if err == nil && self == strconv.Itoa(os.Getpid()) {
		return nil
	}
	return fmt.Errorf("cannot mount a fresh /proc (it says that this is PID %q, not %d): "+
		"parts of /proc are probably masked; start the outer container with an unmasked /proc "+
		"(Docker: --security-opt systempaths=unconfined; Kubernetes: procMount: Unmasked)", self, os.Getpid())
}
