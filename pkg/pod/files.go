package pod

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/netns"
	"github.com/subpod/subpod/pkg/ocispec"
	"github.com/subpod/subpod/pkg/state"
)

// shmSize is the size of a pod's /dev/shm, as everywhere in the field.
const shmSize = "size=64m"

// writePodFiles writes the files that containers of the pod see in /etc.
func (r *Runtime) writePodFiles(dir string, cfg *runtimeapi.PodSandboxConfig) error {
	resolv, err := r.DNS.resolvConf(cfg.DnsConfig)
	if err != nil {
		return err
	}
	hostname := cfg.Hostname
	if hostname == "" {
		if hostname, err = os.Hostname(); err != nil {
			return fmt.Errorf("read the node's hostname: %w", err)
		}
	}
	return errors.Join(
		writeFile(filepath.Join(dir, "resolv.conf"), resolv),
		writeFile(filepath.Join(dir, "hostname"), []byte(hostname+"\n")),
		r.writeHosts(dir, cfg, nil),
	)
}

// writeHosts writes hosts(5): the loopback names, and the pod's own addresses
// once they are known. A pod on the node's network gets the node's file.
func (r *Runtime) writeHosts(dir string, cfg *runtimeapi.PodSandboxConfig, network *netns.Result) error {
	path := filepath.Join(dir, "hosts")
	if state.OnNode(state.NamespaceOptions(cfg).GetNetwork()) {
		if b, err := os.ReadFile("/etc/hosts"); err == nil {
			return writeFile(path, b)
		}
	}
	var out bytes.Buffer
	out.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n")
	if network != nil && cfg.Hostname != "" {
		for _, ip := range network.IPs {
			fmt.Fprintf(&out, "%s\t%s\n", ip, cfg.Hostname)
		}
	}
	return writeFile(path, out.Bytes())
}

func writeFile(path string, content []byte) error {
	if err := os.WriteFile(path, content, 0o644); err != nil {
		return fmt.Errorf("write the pod's file: %w", err)
	}
	return nil
}

// podFiles are the paths that a container of the pod binds.
func (r *Runtime) podFiles(podID string, shm string) ocispec.Files {
	dir := r.podDir(podID)
	return ocispec.Files{
		ResolvConf: filepath.Join(dir, "resolv.conf"),
		Hosts:      filepath.Join(dir, "hosts"),
		Hostname:   filepath.Join(dir, "hostname"),
		Shm:        shm,
	}
}

func mountShm(path string) error {
	if err := os.Mkdir(path, 0o755); err != nil {
		return fmt.Errorf("make the pod's /dev/shm: %w", err)
	}
	if err := unix.Mount("shm", path, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=1777,"+shmSize); err != nil {
		return fmt.Errorf("mount the pod's /dev/shm on %s: %w", path, err)
	}
	return nil
}

// unmount detaches path; what is not mounted or not there is fine.
func unmount(path string) error {
	err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	return nil
}
