package ocispec

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/cgroup"
)

const (
	nsMarker = "SUBPOD_TEST_IN_NAMESPACE"
	subIDs   = 1500000
)

// inNamespace runs the calling test again as root of a user namespace with 65536
// IDs and own mount, PID, network, IPC and UTS namespaces. It returns true in
// there. Outside it reports the inner result and returns false.
func inNamespace(t *testing.T) bool {
	t.Helper()
	if os.Getenv(nsMarker) == "1" {
		setUpNamespace(t)
		return true
	}
	limit := 2 * time.Minute
	if end, ok := t.Deadline(); ok {
		limit = time.Until(end) * 9 / 10 // what is left is for our own report
	}
	args := []string{"-test.run=^" + t.Name() + "$", "-test.v", "-test.timeout=" + limit.String()}
	cmd := exec.Command("/proc/self/exe", args...)
	maps := []syscall.SysProcIDMap{{ContainerID: 0, HostID: subIDs, Size: 65536}}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET |
			unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
		UidMappings: maps, GidMappings: maps, GidMappingsEnableSetgroups: true,
		Credential: &syscall.Credential{Uid: 0, Gid: 0},
		Pdeathsig:  syscall.SIGKILL,
	}
	if os.Geteuid() != 0 {
		if os.Getenv("SUBPOD_TEST_DIR") == "" {
			t.Skip("no subordinate IDs: run the test by tests/user.sh, or as root, of which nothing is left inside")
		}
		exe, err := os.Executable()
		must(t, err)
		cmd = exec.Command("unshare", append([]string{"--user", "--map-root-user", "--map-auto", "--mount", "--pid", "--fork", "--kill-child",
			"--net", "--ipc", "--uts", "--setgid", "0", "--setuid", "0", exe}, args...)...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	}
	cmd.Env = append(os.Environ(), nsMarker+"=1", "TMPDIR=/tmp")
	runtime.LockOSThread() // Pdeathsig is tied to the thread
	defer runtime.UnlockOSThread()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("inside the namespace: %v\n%s", err, out)
	}
	if !bytes.Contains(out, []byte("--- PASS: "+t.Name())) {
		t.Fatalf("the test did not run inside the namespace:\n%s", out)
	}
	t.Logf("inside the namespace:\n%s", out)
	return false
}

// setUpNamespace makes what the node has: its own /proc, shared mounts, and no
// view of hybrid cgroups, which crun refuses.
func setUpNamespace(t *testing.T) {
	t.Helper()
	must(t, unix.Mount("", "/", "", unix.MS_SHARED|unix.MS_REC, ""))
	must(t, unix.Mount("proc", "/proc", "proc", 0, ""))
	if os.Getenv("SUBPOD_TEST_KEEP_CGROUP") == "" {
		must(t, unix.Mount("tmpfs", "/sys/fs/cgroup", "tmpfs", 0, ""))
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// testRootfs makes a root file system with busybox, and accounts like an image's.
func testRootfs(t *testing.T) string {
	t.Helper()
	root := filepath.Join(tempDir(t), "rootfs")
	for _, dir := range []string{"bin", "etc", "proc", "sys", "dev", "tmp", "data"} {
		must(t, os.MkdirAll(filepath.Join(root, dir), 0o755))
	}
	must(t, os.Chmod(filepath.Join(root, "tmp"), 0o777))
	bin, err := os.ReadFile("../../.cache/images/busybox") // of 'make test-images'
	must(t, err)
	must(t, os.WriteFile(filepath.Join(root, "bin/busybox"), bin, 0o755))
	for _, applet := range strings.Fields("sh cat id ls mount env sleep true dd stat grep head touch tty readlink hostname") {
		must(t, os.Symlink("busybox", filepath.Join(root, "bin", applet)))
	}
	must(t, os.WriteFile(filepath.Join(root, "etc/passwd"), []byte(testPasswd), 0o644))
	must(t, os.WriteFile(filepath.Join(root, "etc/group"), []byte(testGroup), 0o644))
	return root
}

const testPasswd = `root:x:0:0:root:/root:/bin/sh
www-data:x:33:33:www:/var/www:/bin/sh
default-user:x:1000:1000::/home:/bin/sh
1234:x:55:56:a number as a name:/:/bin/sh
nobody:x:65534:65534::/:/bin/sh
far:x:200000:5:outside:/:/bin/sh
broken
`

const testGroup = `root:x:0:
www-data:x:33:
group-in-image:x:50000:default-user
both:x:50001:default-user,www-data
nobody:x:65534:
`

// tempDir is removed at the end, and can be entered by all: t.TempDir is private.
func tempDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "ocispec-")
	must(t, err)
	must(t, os.Chmod(dir, 0o755))
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("clean up: %v", err)
		}
	})
	return dir
}

func testHost(t *testing.T) Host {
	t.Helper()
	h, err := DetectHost(cgroup.Detect("auto", ""))
	must(t, err)
	return h
}

// testInput is a container in the namespaces of the test itself.
func testInput(t *testing.T, script string) Input {
	t.Helper()
	return Input{
		PodID: strings.Repeat("a", 64), ID: strings.Repeat("b", 64),
		Features:   Features{RecursiveReadOnlyMounts: true, IDMappedMounts: true},
		Pod:        &runtimeapi.PodSandboxConfig{Hostname: "pod-host", Metadata: &runtimeapi.PodSandboxMetadata{Name: "p", Namespace: "n", Uid: "u"}},
		Container:  &runtimeapi.ContainerConfig{Command: []string{"/bin/sh", "-c", script}, Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{}}},
		Image:      v1.ImageConfig{},
		Rootfs:     testRootfs(t),
		Namespaces: Namespaces{Net: fmt.Sprintf("/proc/%d/ns/net", os.Getpid())},
		Host:       testHost(t),
	}
}

func (in Input) secctx() *runtimeapi.LinuxContainerSecurityContext {
	return in.Container.Linux.SecurityContext
}

// runContainer builds and runs a container and returns what it printed.
func runContainer(t *testing.T, in Input) (string, Output) {
	t.Helper()
	out, err := Build(in)
	must(t, err)
	text, err := runSpec(t, "crun", out, true)
	if err != nil {
		t.Fatalf("run: %v\n%s", err, text)
	}
	return text, out
}

// runSpec runs a built specification with a real OCI runtime; compiled says
// whether it is given our BPF program or compiles the profile itself.
func runSpec(t *testing.T, handler string, out Output, compiled bool) (string, error) {
	t.Helper()
	cmd := runtimeCommand(t, handler, out, compiled, "run", "test")
	b, err := cmd.CombinedOutput()
	return string(b), err
}

func runtimeCommand(t *testing.T, handler string, out Output, compiled bool, args ...string) *exec.Cmd {
	t.Helper()
	bundle := tempDir(t)
	spec := *out.Spec
	if compiled && out.SeccompBPF != "" {
		spec.Annotations = map[string]string{"run.oci.seccomp_bpf_data": out.SeccompBPF}
	}
	b, err := json.Marshal(&spec)
	must(t, err)
	must(t, os.WriteFile(filepath.Join(bundle, "config.json"), b, 0o644))
	argv := []string{"--root", filepath.Join(bundle, "state")}
	if handler == "crun" {
		argv = append(argv, "--cgroup-manager=disabled")
	}
	argv = append(argv, args[0], "--bundle", bundle)
	cmd := exec.Command(handler, append(argv, args[1:]...)...)
	cmd.Dir = bundle
	return cmd
}
