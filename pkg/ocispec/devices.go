package ocispec

import (
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// maxDevices bounds how many device nodes one directory or the host's /dev gives,
// maxEntries how many files are looked at for them.
const (
	maxDevices = 1024
	maxEntries = 1 << 14
)

// devices binds host devices: mknod(2) needs real root. What a bound device lets
// the container do is what the daemon's user may do with it; the device cgroup that
// would limit it further needs real root, too.
func (b *builder) devices() error {
	if b.sec.Privileged {
		if err := b.allDevices(); err != nil {
			return err
		}
	}
	for _, d := range b.Container.Devices {
		dst := d.GetContainerPath()
		if dst == "" {
			dst = d.GetHostPath()
		}
		dst, err := destination(dst)
		if err != nil {
			return err
		}
		if rest := strings.Trim(d.GetPermissions(), "rwm"); rest != "" {
			return invalid("device %s: permissions %.20q are not of r, w and m", dst, d.GetPermissions())
		}
		if err := b.device(d.GetHostPath(), dst); err != nil {
			return err
		}
		if p := d.GetPermissions(); p != "" && !(strings.Contains(p, "r") && strings.Contains(p, "w")) {
			b.warn("device %s: permissions %q cannot be enforced without a device cgroup", dst, p)
		}
	}
	return nil
}

// device binds one device node, or all that are in a directory.
func (b *builder) device(host, dst string) error {
	src, info, err := hostSource(host)
	if err != nil {
		return invalid("device %s: %w", dst, err)
	}
	if info.IsDir() {
		if root := b.Host.DevRoot; root == "" || !strings.HasPrefix(src+"/", root+"/") {
			return invalid("device directory %s is not below %s", host, root)
		}
		found, err := deviceNodes(src)
		if err != nil {
			return invalid("device directory %s: %w", host, err)
		}
		for _, node := range found {
			b.bindDevice(node, path.Join(dst, strings.TrimPrefix(node, src)))
		}
		return nil
	}
	if info.Mode()&fs.ModeDevice == 0 {
		return invalid("device %s: %s is not a device", dst, host)
	}
	if !accessible(src) {
		b.warn("device %s: this user may neither read nor write %s on the host", dst, host)
	}
	b.bindDevice(src, dst)
	return nil
}

func (b *builder) bindDevice(src, dst string) {
	b.spec.Mounts = slices.DeleteFunc(b.spec.Mounts, func(m specs.Mount) bool { return m.Destination == dst })
	b.spec.Mounts = append(b.spec.Mounts, specs.Mount{
		Destination: dst, Type: typeBind, Source: src, Options: []string{"bind", "rprivate", "nosuid", "noexec", "rw"},
	})
}

// allDevices gives a privileged container every device of the host that this user
// can open. Those that each container has anyway are left to the OCI runtime.
func (b *builder) allDevices() error {
	if slices.ContainsFunc(b.spec.Mounts, func(m specs.Mount) bool { return m.Destination == "/dev" && m.Type == typeBind }) {
		return nil // the request brings the host's /dev itself
	}
	found, err := deviceNodes(b.Host.DevRoot)
	if err != nil {
		return err
	}
	for _, node := range found {
		dst := path.Join("/dev", strings.TrimPrefix(node, b.Host.DevRoot))
		taken := slices.ContainsFunc(b.spec.Mounts, func(m specs.Mount) bool { return m.Destination == dst })
		if !taken && !slices.Contains(ownDevices, dst) && accessible(node) {
			b.bindDevice(node, dst)
		}
	}
	return nil
}

// ownDevices are made by the OCI runtime (config-linux.md, "Default Devices").
var ownDevices = []string{
	"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty", "/dev/console", "/dev/ptmx",
}

// ownDirs belong to the container itself.
var ownDirs = []string{"pts", "shm", "mqueue", "fd"}

// deviceNodes lists the device nodes below dir; links are not followed.
func deviceNodes(dir string) ([]string, error) {
	var out []string
	if dir == "" {
		return nil, nil
	}
	seen := 0
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		seen++
		switch {
		case errors.Is(err, os.ErrPermission) || errors.Is(err, os.ErrNotExist):
			return nil
		case err != nil:
			return err
		case d.IsDir() && p != dir && slices.Contains(ownDirs, d.Name()):
			return fs.SkipDir
		case d.Type()&fs.ModeDevice != 0 || d.Type().IsRegular() && isDevice(p):
			out = append(out, p)
		}
		if len(out) >= maxDevices || seen >= maxEntries {
			return fs.SkipAll
		}
		return nil
	})
	return out, err
}

// isDevice also knows a device that is mounted on a file, which the directory lists.
func isDevice(p string) bool {
	info, err := os.Lstat(p)
	return err == nil && info.Mode()&fs.ModeDevice != 0
}

func accessible(p string) bool {
	return unix.Faccessat(unix.AT_FDCWD, p, unix.R_OK, unix.AT_EACCESS) == nil ||
		unix.Faccessat(unix.AT_FDCWD, p, unix.W_OK, unix.AT_EACCESS) == nil
}
