package doctor

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/rootless"
)

// remote lists network file systems. Their servers do not know the user namespace,
// so files of subordinate IDs cannot be stored on them.
var remote = []string{"nfs", "cifs", "smb", "smb2", "gpfs", "lustre", "ibrix", "ceph", "afs", "9p"}

const moveData = "mkdir -p ~/.config/subpod    # and use a data directory on a local disk, such as:\n" +
	"printf '[daemon]\\ndata_dir = \"/var/tmp/%s/subpod\"\\n' >> ~/.config/subpod/subpod.toml"

func dataDir(h Host) []Result {
	want := h.Config.Daemon.DataDir
	dir := h.existing(want)
	disk, err := h.Disk(h.File(dir))
	fix := fmt.Sprintf(moveData, h.Name)
	switch {
	case errors.Is(err, errHangs):
		return one(Error, fix, "%s: %v", dir, err)
	case err != nil:
		return one(Error, "", "%s: %v", dir, err)
	}
	if why := h.unusable(want); why != "" {
		return one(Error, fix, "%s", why)
	}
	if why := notInOptions(want); why != "" {
		return one(Error, fix, "%s", why)
	}
	switch {
	case slices.Contains(remote, disk.Type):
		return one(Error, fix, "%s is on %s, which cannot store files of subordinate IDs", want, disk.Type)
	case disk.Type == "tmpfs" || disk.Type == "ramfs":
		return one(Warning, fix, "%s is on %s: images use memory and are lost on reboot", want, disk.Type)
	case disk.Type == "overlay":
		return one(Warning, "mount a volume on it", "%s is on an overlay, as in a container: the kernel cannot mount another overlay on it", want)
	}
	return one(OK, "", "%s is on %s", want, disk.Type)
}

// notInOptions returns why the server refuses a data directory for its name; "" when it does
// not (checkOptions of storage).
func notInOptions(dir string) string {
	i := strings.IndexAny(dir, ",:\\\n")
	if i < 0 {
		return ""
	}
	return fmt.Sprintf("%q: overlay mount options can't carry %q in a path", dir, dir[i])
}

// unusable returns why the daemon cannot have a directory to write to; "" when it can.
func (h Host) unusable(dir string) string {
	at := h.existing(dir)
	if below, ok := strings.CutPrefix(dir, strings.TrimSuffix(at, "/")+"/"); ok {
		next, _, _ := strings.Cut(below, "/")
		if path := filepath.Join(at, next); h.occupied(path) {
			return fmt.Sprintf("%s cannot be made: %s is there, and is not a directory", dir, path)
		}
	}
	if err := unix.Access(h.File(at), unix.W_OK|unix.X_OK); err != nil {
		if at == dir {
			return fmt.Sprintf("%s cannot be written to: %v", dir, err)
		}
		return fmt.Sprintf("%s cannot be made in %s: %v", dir, at, err)
	}
	if st, err := os.Stat(h.File(dir)); err == nil {
		if sys, ok := st.Sys().(*syscall.Stat_t); ok && int(sys.Uid) != h.UID {
			return fmt.Sprintf("%s belongs to uid %d, not to uid %d", dir, sys.Uid, h.UID)
		}
	}
	return ""
}

// occupied reports whether something is at a path, be it a link to nowhere.
func (h Host) occupied(path string) bool {
	_, err := os.Lstat(h.File(path))
	return err == nil
}

// leastRun is what must be free in the run directory: less than this the files of a pod with
// one container take.
const leastRun = 1 << 20

// runDir checks the directory for what lives as long as the node. Its file system is that of
// XDG_RUNTIME_DIR, most often.
func runDir(h Host) []Result {
	const (
		elsewhere = "export XDG_RUNTIME_DIR=/run/user/$(id -u)    # or set daemon.run_dir to a directory of your own with a short path"
		full      = "du -sh $XDG_RUNTIME_DIR/*    # and remove what is not needed"
	)
	dir, socket := h.Config.Daemon.RunDir, h.Config.Daemon.Socket
	if err := rootless.CheckRunDir(dir); err != nil {
		return one(Error, elsewhere, "%v", err)
	}
	if over := len(socket) - rootless.MaxSocket; over > 0 {
		return one(Error, elsewhere, "daemon.socket %q is too long for a socket (%d bytes over)", socket, over)
	}
	if why := h.unusable(dir); why != "" {
		return one(Error, elsewhere, "%s", why)
	}
	if disk, err := h.Disk(h.File(h.existing(dir))); err == nil && disk.Total > 0 && disk.Free < leastRun {
		return one(Error, full, "%s is full: no container can be started", dir)
	}
	return one(OK, "", "%s", dir)
}

const (
	gib       = 1 << 30
	lowSpace  = gib / 2
	lessSpace = 5 * gib
)

func diskSpace(h Host) []Result {
	dir := h.existing(h.Config.Daemon.DataDir)
	disk, err := h.Disk(h.File(dir))
	if err != nil {
		return nil // reported by dataDir
	}
	free := fmt.Sprintf("%.1f GiB of %.1f free in %s", float64(disk.Free)/gib, float64(disk.Total)/gib, dir)
	const fix = "subpod images    # then remove images: subpod rmi IMAGE"
	switch {
	case disk.Free < lowSpace:
		return one(Error, fix, "%s: not enough for an image", free)
	case disk.Inodes > 0 && disk.FreeInodes < 10000:
		return one(Error, fix, "only %d inodes free in %s", disk.FreeInodes, dir)
	case disk.Free < lessSpace:
		return one(Warning, fix, "%s", free)
	}
	return one(OK, "", "%s", free)
}

// network says what pods miss for what the host's network is at the moment.
func network(h Host) []Result {
	c := h.resolved()
	if lacks := h.WayOut.Lacks(c.Uplink, c.IPv6 && h.Config.Network.HasIPv6()); lacks != "" {
		return one(Info, "", "%s", lacks)
	}
	if c.NoIPv6 != "" && h.WayOut.IPv6 {
		return one(Info, "", "pods have no way out by IPv6, which this host has: %s", c.NoIPv6)
	}
	return nil
}

func ports(h Host) []Result {
	start, ok := h.Sysctl("net/ipv4/ip_unprivileged_port_start")
	if !ok || start <= 80 {
		return one(OK, "", "host ports from %d upwards can be published", start)
	}
	return one(Info, "echo net.ipv4.ip_unprivileged_port_start=80 | sudo tee /etc/sysctl.d/90-subpod-ports.conf\nsudo sysctl --system",
		"host ports below %d cannot be published (net.ipv4.ip_unprivileged_port_start)", start)
}

// limit checks a limit that is counted per user and of which each pod uses a part.
func limit(h Host, key string, least int, why string) []Result {
	name := strings.ReplaceAll(key, "/", ".")
	have, ok := h.Sysctl(key)
	switch {
	case !ok:
		return nil
	case have < least:
		return one(Warning, fmt.Sprintf("echo %s=%d | sudo tee -a /etc/sysctl.d/90-subpod-limits.conf\nsudo sysctl --system", name, least),
			"%s is %d: %s", name, have, why)
	}
	return one(OK, "", "%s is %d", name, have)
}

func inotify(h Host) []Result {
	return append(
		limit(h, "fs/inotify/max_user_instances", 128, "a few programs that watch files will exhaust it and fail with \"too many open files\""),
		limit(h, "fs/inotify/max_user_watches", 8192, "programs that watch many files will fail with \"no space left on device\"")...)
}

// keyring checks the number of keys: each container has a session keyring
// (keyrings(7)).
func keyring(h Host) []Result {
	return limit(h, "kernel/keys/maxkeys", 200, "each container has a session keyring of one of your IDs, and shares the daemon's when none may have one more")
}

// earlierRun checks for files of a daemon that no longer runs.
func earlierRun(h Host) []Result {
	run := h.Config.Daemon.RunDir
	node, err := h.Node(h.File(run))
	if err == nil && node.Degraded() != "" {
		return one(Warning, "", "a daemon runs (PID %d is the first process of its node), but %s", node.ChildPID, strings.Join(strings.Fields(node.Degraded()), " "))
	}
	if err == nil {
		return one(OK, "", "a daemon is running (PID %d is the first process of its node)", node.ChildPID)
	}
	if !errors.Is(err, rootless.ErrNoNode) {
		return one(Warning, "", "%v", err)
	}
	if st, err := os.Stat(h.File(run)); err == nil && !st.IsDir() {
		return one(Error, "rm "+run, "%s is not a directory", run)
	}
	var left []string
	for _, dir := range []string{"node", "pods", "containers"} {
		if entries, err := os.ReadDir(h.File(filepath.Join(run, dir))); err == nil && len(entries) > 0 {
			left = append(left, fmt.Sprintf("%d in %s", len(entries), dir))
		}
	}
	if left != nil {
		return one(Info, "", "%s contains files of an earlier daemon (%s): the next start removes them", run, strings.Join(left, ", "))
	}
	return one(OK, "", "no files of an earlier daemon")
}
