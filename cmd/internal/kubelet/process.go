package kubelet

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"sigs.k8s.io/yaml"
)

// cgroupRoot is where a kubelet looks for cgroups.
const cgroupRoot = "/sys/fs/cgroup"

// waitInterval is how often Args looks for the files of kubeadm.
const waitInterval = 500 * time.Millisecond

// Args returns the arguments of a kubelet that kubeadm has configured, as the unit of the
// Kubernetes project's packages has them. It waits until kubeadm init or join has got so
// far. below is put before the paths ("" in the node).
func Args(ctx context.Context, below string) ([]string, error) {
	for {
		flags, err := os.ReadFile(below + FlagsFile)
		if err == nil && exists(below+ConfigFile) && (exists(below+KubeConfig) || exists(below+Bootstrap)) {
			args := []string{"--bootstrap-kubeconfig=" + Bootstrap, "--kubeconfig=" + KubeConfig, "--config=" + ConfigFile}
			return append(args, parseFlags(flags)...), nil
		}
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(waitInterval):
		}
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// parseFlags reads the line KUBELET_KUBEADM_ARGS="…" of kubeadm's file.
func parseFlags(data []byte) []string {
	lines := bufio.NewScanner(bytes.NewReader(data))
	for lines.Scan() {
		if value, ok := strings.CutPrefix(strings.TrimSpace(lines.Text()), "KUBELET_KUBEADM_ARGS="); ok {
			return strings.Fields(strings.Trim(value, `"`))
		}
	}
	return nil
}

// ErrNodeIP says that the node has no address that others reach it by.
var ErrNodeIP = errors.New("the node calls itself by an address that all nodes of subpod have")

// CheckNodeIP returns ErrNodeIP unless a kubelet's arguments name the node's address.
func CheckNodeIP(args []string) error {
	if flagValue(args, "node-ip") == "" {
		return fmt.Errorf("%w: subpod kubernetes config --write --node-ip ADDRESS, before kubeadm init or join", ErrNodeIP)
	}
	return nil
}

// flagValue returns the value of the last flag of a name in a kubelet's arguments.
func flagValue(args []string, name string) string {
	value := ""
	for i, arg := range args {
		if v, ok := strings.CutPrefix(arg, "--"+name+"="); ok {
			value = v
		} else if arg == "--"+name && i+1 < len(args) {
			value = args[i+1]
		}
	}
	return value
}

// maxPods returns the number of pods that a kubelet with these arguments allows.
func maxPods(args []string) int {
	var config struct{ MaxPods int }
	if path := flagValue(args, "config"); path != "" {
		if data, err := os.ReadFile(path); err == nil {
			_ = yaml.Unmarshal(data, &config) // the kubelet will say it better
		}
	}
	if config.MaxPods == 0 {
		return DefaultMaxPods
	}
	return config.MaxPods
}

// Process is a kubelet to become.
type Process struct {
	Program string
	Args    []string
	// UserNamespaces lets pods have user namespaces of their own (hostUsers: false).
	UserNamespaces bool
}

// Exec becomes the kubelet. The caller is root of the node, in all of its namespaces. The
// kubelet has what it would not find there, and nobody else is to see, in a mount namespace
// of its own, from which its volumes still reach the node: cgroup v2 in place of a hybrid
// host's, and with UserNamespaces the account that confines it to the node's IDs. ErrIDs.
func (p Process) Exec() error {
	path, err := exec.LookPath(p.Program)
	if err != nil {
		return err
	}
	runtime.LockOSThread()
	if err := addNodeIP(flagValue(p.Args, "node-ip")); err != nil {
		return err
	}
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("make the kubelet's mount namespace: %w", err)
	}
	if err := showCgroup(); err != nil {
		return err
	}
	if p.UserNamespaces {
		if err := setUpUserNamespaces(maxPods(p.Args)); err != nil {
			return err
		}
	}
	err = unix.Exec(path, append([]string{p.Program}, p.Args...), os.Environ())
	return fmt.Errorf("execute %s: %w", path, err)
}

// setUpUserNamespaces gives a kubelet of so many pods what it needs for their user namespaces.
func setUpUserNamespaces(pods int) error {
	ids, err := nodeIDs()
	if err != nil {
		return err
	}
	if fit := UserNamespaces(ids); fit < pods {
		return fmt.Errorf("%w: the node's %d IDs are enough for %d pods with hostUsers: false, and maxPods is %d: subpod kubernetes config --write --user-namespaces", ErrIDs, ids, fit, pods)
	}
	if err := podsInMemory(PodsDir); err != nil {
		return err
	}
	return showAccount(ids)
}

// podsInMemory mounts a tmpfs on the directory of the pods' volumes, in the node: the
// kernel maps the IDs of no other file system for an ordinary user. Once it is there, the
// pods of this node have their volumes on it.
func podsInMemory(dir string) error {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return err
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil || st.Type == unix.TMPFS_MAGIC {
		return err
	}
	// What a pod of an earlier node has left there on the disk is of no use to anyone.
	if err := unix.Mount("subpod-pods", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=750"); err != nil {
		return fmt.Errorf("mount a tmpfs on %s: %w", dir, err)
	}
	return nil
}

// addNodeIP puts the addresses of --node-ip on the node's loopback, where no interface of
// the node has them: a kubelet takes no others.
func addNodeIP(list string) error {
	for text := range strings.SplitSeq(list, ",") {
		address, err := netip.ParseAddr(text)
		if err != nil || address.IsUnspecified() {
			continue // "", or one that the kubelet chooses by itself
		}
		out, err := exec.Command("ip", "address", "show", "to", text).CombinedOutput()
		if err == nil && len(bytes.TrimSpace(out)) == 0 {
			out, err = exec.Command("ip", "address", "add", netip.PrefixFrom(address, address.BitLen()).String(), "dev", "lo").CombinedOutput()
		}
		if err != nil {
			return fmt.Errorf("put the address %s on the node's loopback: %w: %s", text, err, bytes.TrimSpace(out))
		}
	}
	return nil
}

// showCgroup mounts cgroup v2 where the node has none, on a host with cgroup v1 or both:
// a kubelet refuses to run there. It is the calling thread's mount namespace only.
func showCgroup() error {
	var st unix.Statfs_t
	if err := unix.Statfs(cgroupRoot, &st); err == nil && st.Type == unix.CGROUP2_SUPER_MAGIC {
		return nil
	}
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("make the kubelet's cgroup namespace: %w", err)
	}
	if err := keepOwn("/sys"); err != nil {
		return err
	}
	if err := unix.Mount("cgroup2", cgroupRoot, "cgroup2", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount cgroup v2 for the kubelet on a host that has not only that: %w", err)
	}
	return nil
}

// keepOwn makes what is mounted below dir from now on the calling thread's own: the node
// does not see it. Where dir is no mount of its own (the minimal view's /etc), that holds
// for the root mount; the kubelet's volumes are in another.
func keepOwn(dir string) error {
	err := unix.Mount("", dir, "", unix.MS_PRIVATE|unix.MS_REC, "")
	if errors.Is(err, unix.EINVAL) {
		err = unix.Mount("", "/", "", unix.MS_PRIVATE, "")
	}
	if err != nil {
		return fmt.Errorf("keep the kubelet's mounts in %s from the node: %w", dir, err)
	}
	return nil
}

// nodeIDs returns how many IDs the node has, from 0 on without a gap.
func nodeIDs() (uint32, error) {
	least := ^uint32(0)
	for _, name := range []string{"uid_map", "gid_map"} {
		data, err := os.ReadFile("/proc/self/" + name)
		if err != nil {
			return 0, err
		}
		least = min(least, countIDs(string(data)))
	}
	return least, nil
}

// countIDs reads a map of user_namespaces(7).
func countIDs(text string) uint32 {
	var next uint64
	for line := range strings.Lines(text) {
		var inside, outside, size uint64
		if _, err := fmt.Sscan(line, &inside, &outside, &size); err != nil || inside != next {
			break
		}
		next += size
	}
	return uint32(min(next, 1<<32-1))
}

// showAccount lets the kubelet find an account "kubelet" whose subordinate IDs are those
// of the node above the first range: else it gives pods IDs that the node does not have.
// The range is that of getsubids(1), which it runs.
func showAccount(ids uint32) error {
	passwd, err := os.ReadFile("/etc/passwd")
	if err != nil {
		return err
	}
	if err := keepOwn("/etc"); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("/run", "subpod-kubelet-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	for name, content := range account(string(passwd), ids) {
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
			return err
		}
		if err := mountOn(file, "/etc/"+name); err != nil {
			return err
		}
	}
	return nil
}

// account returns the files of /etc with the account.
func account(passwd string, ids uint32) map[string]string {
	var kept strings.Builder
	for line := range strings.Lines(passwd) {
		if !strings.HasPrefix(line, "kubelet:") {
			kept.WriteString(strings.TrimSuffix(line, "\n") + "\n")
		}
	}
	ranges := fmt.Sprintf("kubelet:%d:%d\n", IDsPerPod, UserNamespaces(ids)*IDsPerPod)
	return map[string]string{
		"passwd": kept.String() + "kubelet:x:65533:65533:kubelet:/var/lib/kubelet:/usr/sbin/nologin\n",
		"subuid": ranges, "subgid": ranges,
	}
}

// mountOn mounts file on target. In the node's /etc that is a link to the host's file, and
// is mounted on as such: getsubids(1) follows none.
func mountOn(file, target string) error {
	if _, err := os.Lstat(target); errors.Is(err, fs.ErrNotExist) { // a host may have no /etc/subuid
		if err := os.WriteFile(target, nil, 0o644); err != nil {
			return err
		}
	}
	tree, err := unix.OpenTree(unix.AT_FDCWD, file, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("take %s: %w", file, err)
	}
	defer unix.Close(tree)
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount %s on %s: %w", file, target, err)
	}
	return nil
}
