// Package containerd runs a containerd of an ordinary user for tests that look at it
// beside subpod: of what tests/bench/peers/build.sh has built, by rootlesskit.
package containerd

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

// Host is the host's loopback address as slirp4netns shows it.
const Host = "10.0.2.2"

// Options of a containerd.
type Options struct {
	Registry string   // the tests' registry, on the host's loopback
	Images   []string // others of which images are pulled
	Port     int      // of the host's loopback, that rootlesskit passes on
	Setup    string   // what sh does in its namespaces before it starts; $DIR is Dir
}

// Containerd is a rootless containerd. Its namespaces are those of rootlesskit's child.
type Containerd struct {
	Dir, Run string // on disk; on a tmpfs, where there is one
	cmd      *exec.Cmd
}

// Bin is the directory of the programs.
func Bin() string { return filepath.Join(node.Tree(), ".cache/peers/bin") }

// crunFor goes without cgroups, which nobody has here, and lets a crun of Debian 12 read
// what is written for a newer one.
const crunFor = `#!/bin/sh
for arg; do
	if [ "$last" = --bundle ]; then sed -i 's/"ociVersion":"[^"]*"/"ociVersion":"1.0.2"/' "$arg/config.json"; fi
	last=$arg
done
exec crun --cgroup-manager=disabled "$@"
`

// Start starts one as containerd's docs do it for users without root: rootlesskit,
// slirp4netns, the native overlay, crun, CNI's bridge. At the end of the test it is stopped
// and nothing is left of it.
func Start(t testing.TB, o Options) *Containerd {
	t.Helper()
	c := &Containerd{}
	for to, base := range map[*string]string{&c.Dir: os.Getenv("SUBPOD_TEST_DIR"), &c.Run: os.Getenv("XDG_RUNTIME_DIR")} {
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
	c.write(t, "config.toml", 0o600, c.config(o.Registry))
	c.write(t, "cni/10-bench.conflist", 0o600, `{"cniVersion": "1.0.0", "name": "bench", "plugins": [
 {"type": "bridge", "bridge": "bench0", "isGateway": true, "ipMasq": true, "mtu": 65520,
  "ipam": {"type": "host-local", "dataDir": "`+c.Run+`/ipam", "ranges": [[{"subnet": "10.77.0.0/16"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
 {"type": "portmap", "capabilities": {"portMappings": true}}]}`)
	for _, ref := range append([]string{o.Registry + "/"}, o.Images...) {
		host, _, _ := strings.Cut(Reaches(ref), "/")
		c.write(t, "certs.d/"+host+"/hosts.toml", 0o600, fmt.Sprintf("server = \"http://%s\"\n[host.\"http://%s\"]\ncapabilities = [\"pull\", \"resolve\"]\n", host, host))
	}
	c.cmd = exec.Command(filepath.Join(Bin(), "rootlesskit"), c.args(o)...)
	c.cmd.Env = append(os.Environ(), "PATH="+Bin()+":"+os.Getenv("PATH")+":/usr/sbin:/sbin", "DIR="+c.Dir)
	out, err := os.Create(filepath.Join(c.Dir, "log"))
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

// args are rootlesskit's, as in containerd-rootless.sh, but that the host's loopback can be
// reached: there are the registries.
func (c *Containerd) args(o Options) []string {
	args := []string{"--state-dir=" + c.Run + "/rootlesskit", "--net=slirp4netns", "--mtu=65520",
		"--slirp4netns-sandbox=false", "--slirp4netns-seccomp=false", "--disable-host-loopback=false", "--port-driver=builtin",
		"--copy-up=/etc", "--copy-up=/run", "--copy-up=/var/lib", "--propagation=rslave", "--pidns"}
	if o.Port != 0 {
		args = append(args, fmt.Sprintf("--publish=127.0.0.1:%[1]d:%[1]d/tcp", o.Port))
	}
	return append(args, "sh", "-ec", "mount -t tmpfs none /sys/fs/cgroup\n"+o.Setup+"\nexec \"$0\" --config \"$1\"",
		filepath.Join(Bin(), "containerd"), c.Dir+"/config.toml")
}

func (c *Containerd) write(t testing.TB, name string, mode os.FileMode, text string) {
	t.Helper()
	path := filepath.Join(c.Dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}

func (c *Containerd) config(registry string) string {
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
`, c.Dir, c.Run, Bin(), Reaches(registry+"/registry.k8s.io/pause:3.9"))
}

// Reaches is the name of an image on a registry of the host's loopback.
func Reaches(ref string) string {
	return strings.Replace(ref, "127.0.0.1:", Host+":", 1)
}

// Log returns the end of what containerd has written.
func (c *Containerd) Log() string {
	data, _ := os.ReadFile(filepath.Join(c.Dir, "log"))
	return string(data[max(0, len(data)-4000):])
}

// PID is rootlesskit's, above all else of it.
func (c *Containerd) PID() int { return c.cmd.Process.Pid }

// Child is the first process in rootlesskit's namespaces.
func (c *Containerd) Child(t testing.TB) int {
	t.Helper()
	data, err := os.ReadFile(c.Run + "/rootlesskit/child_pid")
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// Socket is containerd's.
func (c *Containerd) Socket() string { return c.Run + "/containerd.sock" }

// Client waits until containerd serves.
func (c *Containerd) Client(t testing.TB) node.Client {
	t.Helper()
	conn, err := node.Dial(c.Socket())
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
			t.Fatalf("containerd does not serve: %v\n%s", err, c.Log())
		}
	}
}

// Version is that of the program.
func Version(t testing.TB) string {
	t.Helper()
	out, err := exec.Command(filepath.Join(Bin(), "containerd"), "--version").Output()
	if f := strings.Fields(string(out)); err == nil && len(f) > 2 {
		return strings.TrimPrefix(f[2], "v")
	}
	t.Fatalf("containerd --version: %v: %s", err, out)
	return ""
}
