package bench

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/tests/node"
)

// hostBySlirp is the host's loopback address as slirp4netns shows it.
const hostBySlirp = "10.0.2.2"

// containerd is a rootless containerd.
type containerd struct {
	dir, run string // on disk; on a tmpfs, where there is one
	port     int    // that rootlesskit passes on
	cmd      *exec.Cmd
}

// crunFor goes without cgroups, which nobody has here, and lets a crun of Debian 12 read
// what is written for a newer one.
const crunFor = `#!/bin/sh
for arg; do
	if [ "$last" = --bundle ]; then sed -i 's/"ociVersion":"[^"]*"/"ociVersion":"1.0.2"/' "$arg/config.json"; fi
	last=$arg
done
exec crun --cgroup-manager=disabled "$@"
`

func startContainerd(t *testing.T, bin, reg string, images map[string][]string) *containerd {
	t.Helper()
	c := &containerd{port: int(freePorts(t, 4))}
	for to, base := range map[*string]string{&c.dir: os.Getenv("SUBPOD_TEST_DIR"), &c.run: os.Getenv("XDG_RUNTIME_DIR")} {
		dir, err := os.MkdirTemp(base, "c")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := node.RemoveAll(dir); err != nil {
				t.Error(err)
			}
		})
		*to = dir
	}
	c.write(t, "crun", 0o755, crunFor)
	c.write(t, "config.toml", 0o600, c.config(bin, reg))
	c.write(t, "cni/10-bench.conflist", 0o600, `{"cniVersion": "1.0.0", "name": "bench", "plugins": [
 {"type": "bridge", "bridge": "bench0", "isGateway": true, "ipMasq": true, "mtu": 65520,
  "ipam": {"type": "host-local", "dataDir": "`+c.run+`/ipam", "ranges": [[{"subnet": "10.77.0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
 {"type": "portmap", "capabilities": {"portMappings": true}}]}`)
	refs := []string{reg + "/"}
	for _, pulls := range images {
		refs = append(refs, pulls[0]) // one registry has them all
	}
	for _, ref := range refs {
		host, _, _ := strings.Cut(c.reaches(ref), "/")
		c.write(t, "certs.d/"+host+"/hosts.toml", 0o600, fmt.Sprintf("server = \"http://%s\"\n[host.\"http://%s\"]\ncapabilities = [\"pull\", \"resolve\"]\n", host, host))
	}
	// As in containerd-rootless.sh, but that the host's loopback can be reached: there
	// are the registries.
	c.cmd = exec.Command(filepath.Join(bin, "rootlesskit"), "--state-dir="+c.run+"/rootlesskit", "--net=slirp4netns", "--mtu=65520",
		"--slirp4netns-sandbox=false", "--slirp4netns-seccomp=false", "--disable-host-loopback=false", "--port-driver=builtin",
		fmt.Sprintf("--publish=127.0.0.1:%d:%d/tcp", c.port, c.port),
		"--copy-up=/etc", "--copy-up=/run", "--copy-up=/var/lib", "--propagation=rslave", "--pidns",
		"sh", "-c", "mount -t tmpfs none /sys/fs/cgroup && exec \"$0\" --config \"$1\"", filepath.Join(bin, "containerd"), c.dir+"/config.toml")
	c.cmd.Env = append(os.Environ(), "PATH="+bin+":"+os.Getenv("PATH"))
	out, err := os.Create(filepath.Join(c.dir, "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	c.cmd.Stdout, c.cmd.Stderr = out, out
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := c.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.cmd.Process.Signal(syscall.SIGTERM)
		ended := time.AfterFunc(20*time.Second, func() { _ = c.cmd.Process.Kill() })
		_ = c.cmd.Wait()
		ended.Stop()
	})
	return c
}

func (c *containerd) write(t *testing.T, name string, mode os.FileMode, text string) {
	t.Helper()
	path := filepath.Join(c.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}

func (c *containerd) config(bin, reg string) string {
	return fmt.Sprintf(`version = 3
root = "%[1]s/root"
state = "%[2]s/state"
[grpc]
  address = "%[2]s/containerd.sock"
[plugins."io.containerd.cri.v1.runtime"]
  disable_cgroup = true
  disable_apparmor = true
  disable_hugetlb_controller = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.cri.v1.runtime".containerd]
    default_runtime_name = "crun"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.crun]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.crun.options]
        BinaryName = "%[1]s/crun"
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["%[3]s"]
    conf_dir = "%[1]s/cni"
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "overlayfs"
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = "%[4]s"
  [plugins."io.containerd.cri.v1.images".registry]
    config_path = "%[1]s/certs.d"
`, c.dir, c.run, bin, c.reaches(reg+"/registry.k8s.io/pause:3.9"))
}

// reaches is the name of an image on a registry of the host's loopback.
func (c *containerd) reaches(ref string) string {
	return strings.Replace(ref, "127.0.0.1:", hostBySlirp+":", 1)
}

func (c *containerd) log() string {
	data, _ := os.ReadFile(filepath.Join(c.dir, "log"))
	return string(data[max(0, len(data)-4000):])
}

// child is the first process in rootlesskit's namespaces.
func (c *containerd) child(t *testing.T) int {
	t.Helper()
	data, err := os.ReadFile(c.run + "/rootlesskit/child_pid")
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// client waits until containerd serves. Its socket lies in a /run of its own.
func (c *containerd) client(t *testing.T) node.Client {
	t.Helper()
	socket := c.run + "/containerd.sock"
	conn, err := node.Dial(socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	cri := node.Client{RuntimeServiceClient: runtimeapi.NewRuntimeServiceClient(conn), ImageServiceClient: runtimeapi.NewImageServiceClient(conn)}
	for deadline := time.Now().Add(node.Converge); ; time.Sleep(50 * time.Millisecond) {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		_, err := cri.Version(ctx, &runtimeapi.VersionRequest{})
		cancel()
		if err == nil {
			return cri
		}
		if time.Now().After(deadline) {
			t.Fatalf("containerd does not serve: %v\n%s", err, c.log())
		}
	}
}

func (c *containerd) version(t *testing.T) string {
	t.Helper()
	out, err := exec.Command(filepath.Join(node.Tree(), ".cache/peers/bin/containerd"), "--version").Output()
	if f := strings.Fields(string(out)); err == nil && len(f) > 2 {
		return strings.TrimPrefix(f[2], "v")
	}
	t.Fatalf("containerd --version: %v: %s", err, out)
	return ""
}

// criPlace is a pod's network namespace.
type criPlace struct {
	child int
	netns string
}

func (p criPlace) argv(args ...string) []string {
	return append([]string{"nsenter", "--target", strconv.Itoa(p.child), "--user", "--preserve-credentials", "--mount", "--net", "--",
		"nsenter", "--net=" + p.netns, "--"}, args...)
}

func (c *containerd) place(t *testing.T, id string) place {
	return criPlace{c.child(t), netnsOf(t, c.client(t), id)}
}
