package attack

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/tests/node"
)

// TestFilling: nothing that a container can write lies on the tmpfs of the run
// directory, $XDG_RUNTIME_DIR, which whoever fills it takes from the daemon (no new
// pod) and from the user's session. Every file system of a container that is mounted
// writable is looked at, in pods of each kind, and what has a bound is filled.
func TestFilling(t *testing.T) {
	n := node.Start(t, node.Options{Config: node.Bridge})
	cri := n.CRI()
	if _, err := cri.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: node.Busybox}}); err != nil {
		t.Fatal(err)
	}
	ns := func(edit func(*runtimeapi.NamespaceOption)) *runtimeapi.NamespaceOption {
		o := &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}
		if edit != nil {
			edit(o)
		}
		return o
	}
	for name, namespaces := range map[string]*runtimeapi.NamespaceOption{
		"ordinary": ns(nil),
		"host-net": ns(func(o *runtimeapi.NamespaceOption) { o.Network = runtimeapi.NamespaceMode_NODE }),
		"host-ipc": ns(func(o *runtimeapi.NamespaceOption) { o.Ipc = runtimeapi.NamespaceMode_NODE }),
		"host-pid": ns(func(o *runtimeapi.NamespaceOption) { o.Pid = runtimeapi.NamespaceMode_NODE }),
		"shared":   ns(func(o *runtimeapi.NamespaceOption) { o.Pid = runtimeapi.NamespaceMode_POD }),
	} {
		for _, privileged := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, privileged %v", name, privileged), func(t *testing.T) {
				w := writer{T: t, n: n.For(t), cri: cri}
				w.start(fmt.Sprintf("%s-%v", name, privileged), namespaces, privileged)
				w.checkMounts()
				if name == "ordinary" {
					w.fillFiles("/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/dev/shm/file", "/dev/file")
					w.fillInodes("/dev/shm")
				}
			})
		}
	}
	t.Run("play", func(t *testing.T) { testFillingByPlay(t, n.For(t)) })
}

// writer is a container that writes wherever it can.
type writer struct {
	*testing.T
	n   *node.Node
	cri node.Client
	id  string
}

func (w *writer) start(name string, namespaces *runtimeapi.NamespaceOption, privileged bool) {
	w.Helper()
	must := func(err error) {
		w.Helper()
		if err != nil {
			w.Fatal(err)
		}
	}
	config := &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "tests", Uid: name}, LogDirectory: filepath.Join(w.n.Dir, "logs"),
		Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: namespaces, Privileged: privileged}},
	}
	pod, err := w.cri.RunPodSandbox(w.Context(), &runtimeapi.RunPodSandboxRequest{Config: config})
	must(err)
	w.Cleanup(func() {
		_, _ = w.cri.RemovePodSandbox(context.Background(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: pod.PodSandboxId})
	})
	made, err := w.cri.CreateContainer(w.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: pod.PodSandboxId, SandboxConfig: config, Config: &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: name}, Image: &runtimeapi.ImageSpec{Image: node.Busybox}, LogPath: name + ".log",
		Command: []string{"sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.1; done"},
		Linux:   &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{NamespaceOptions: namespaces, Privileged: privileged}},
	}})
	must(err)
	_, err = w.cri.StartContainer(w.Context(), &runtimeapi.StartContainerRequest{ContainerId: made.ContainerId})
	must(err)
	w.id = made.ContainerId
}

// exec runs a script in the container, whatever its exit code.
func (w *writer) exec(script string) string {
	w.Helper()
	resp, err := w.cri.ExecSync(w.Context(), &runtimeapi.ExecSyncRequest{ContainerId: w.id, Cmd: []string{"sh", "-c", script}, Timeout: 60})
	if err != nil {
		w.Fatal(err)
	}
	return string(resp.Stdout) + string(resp.Stderr)
}

// checkMounts fails for each writable mount of the container that is of the run
// directory's file system, by its device.
func (w *writer) checkMounts() {
	w.Helper()
	shared := deviceOf(w.T, w.n.XDG)
	found := map[string]bool{}
	for line := range strings.Lines(w.exec("cat /proc/self/mountinfo")) {
		fields := strings.Fields(line)
		if len(fields) < 6 || strings.Contains(","+fields[5]+",", ",ro,") {
			continue
		}
		found[fields[4]] = true
		if fields[2] == shared {
			w.Errorf("%s can be written and is a part of the run directory's file system: %s", fields[4], line)
		}
	}
	for _, want := range []string{"/", "/dev/shm", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf"} {
		if !found[want] {
			w.Errorf("%s is no writable mount: of what is written to it nothing is known", want)
		}
	}
}

func deviceOf(t *testing.T, path string) string {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev))
}

// fillFiles writes 80 MiB to each file: it must not fit, and the run directory must
// have as much room as before.
func (w *writer) fillFiles(paths ...string) {
	w.Helper()
	for _, path := range paths {
		before := freeBlocks(w.T, w.n.XDG)
		out := w.exec("cat " + path + " >/tmp/before 2>/dev/null; dd if=/dev/zero of=" + path + " bs=1M count=80 2>&1; ls -l " + path)
		if !strings.Contains(out, "No space left") {
			w.Errorf("80 MiB fit into %s: %s", path, out)
		}
		if after := freeBlocks(w.T, w.n.XDG); before-after > 16<<20 {
			w.Errorf("a full %s has taken %d MiB of the run directory", path, (before-after)>>20)
		}
		w.exec("cat /tmp/before >" + path)
	}
}

// freeBlocks returns the free room of a file system in bytes.
func freeBlocks(t *testing.T, path string) int64 {
	t.Helper()
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		t.Fatal(err)
	}
	return int64(st.Bfree) * st.Bsize
}

// fillInodes makes empty files, each of which takes memory of the kernel's.
func (w *writer) fillInodes(dir string) {
	w.Helper()
	var most int
	if _, err := fmt.Sscan(w.exec("df -i "+dir+" | awk 'END { print $2 }'"), &most); err != nil {
		w.Fatal(err)
	}
	if most == 0 || most > 1<<16 {
		w.Errorf("%s takes %d files, want a bound of at most %d", dir, most, 1<<16)
	}
}

const fillingManifest = `
apiVersion: v1
kind: Secret
metadata: {name: s}
stringData: {k: v}
---
apiVersion: v1
kind: Pod
metadata: {name: filler}
spec:
  hostAliases: [{ip: 192.0.2.9, hostnames: [alias]}]
  containers:
  - name: c
    image: ` + node.Busybox + `
    command: [sh, -c, "trap 'exit 0' TERM; while :; do sleep 0.1; done"]
    volumeMounts:
    - {name: limited, mountPath: /limited}
    - {name: part, mountPath: /part, subPath: below}
    - {name: free, mountPath: /free}
    - {name: disk, mountPath: /disk}
    - {name: claim, mountPath: /claim}
    - {name: secret, mountPath: /secret}
    - {name: fields, mountPath: /fields}
  volumes:
  - {name: limited, emptyDir: {medium: Memory, sizeLimit: 8Mi}}
  - {name: part, emptyDir: {medium: Memory, sizeLimit: 4Mi}}
  - {name: free, emptyDir: {medium: Memory}}
  - {name: disk, emptyDir: {}}
  - {name: claim, persistentVolumeClaim: {claimName: kept}}
  - {name: secret, secret: {secretName: s}}
  - {name: fields, downwardAPI: {items: [{path: name, fieldRef: {fieldPath: metadata.name}}]}}
`

// testFillingByPlay is the same for the volumes of manifests. Limits of memory volumes
// are enforced by the kernel.
func testFillingByPlay(t *testing.T, n *node.Node) {
	play := func(name, text string) (string, error) {
		n.WriteHome(name, text)
		return n.Subpod("play", "--detach", filepath.Join(n.Home, name))
	}
	if _, err := play("filler.yaml", fillingManifest); err != nil {
		t.Fatal(err)
	}
	w := writer{T: t, n: n, cri: n.CRI()}
	node.Eventually(t, "the container runs", func() error {
		list, err := w.cri.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{})
		if err != nil {
			return err
		}
		for _, c := range list.Containers {
			if c.Metadata.Name == "c" && c.State == runtimeapi.ContainerState_CONTAINER_RUNNING {
				w.id = c.Id
				return nil
			}
		}
		return errors.New("there is none")
	})
	w.checkMounts()
	for path, limit := range map[string]int{"/limited/file": 8 << 20, "/part/file": 4 << 20} {
		out := w.exec("dd if=/dev/zero of=" + path + " bs=64k count=256 2>&1; stat -c %s " + path)
		size, err := strconv.Atoi(out[strings.LastIndex(strings.TrimSpace(out), "\n")+1 : len(out)-1])
		if err != nil || size > limit || size < limit/2 || !strings.Contains(out, "No space left") {
			t.Errorf("%s takes %d bytes, its volume's limit is %d: %v: %s", path, size, limit, err, out)
		}
	}
	if out := w.exec("grep alias /etc/hosts; echo >>/secret/k; echo x >/free/x && cat /free/x"); !strings.Contains(out, "192.0.2.9") || !strings.Contains(out, "Read-only") || !strings.Contains(out, "\nx\n") {
		t.Errorf("the volumes: %s", out)
	}
	if _, err := n.Subpod("play", "--down", filepath.Join(n.Home, "filler.yaml")); err != nil {
		t.Error(err)
	}
	if left, _ := os.ReadDir(filepath.Join(n.RunDir, "play")); len(left) > 0 {
		t.Errorf("%d directories of the pod are left", len(left))
	}
}
