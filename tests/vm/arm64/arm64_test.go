// Package arm64 walks subpod for arm64 through an emulated machine: what is built for it
// starts pods, and its seccomp programs decide as libseccomp's do.
package arm64

import (
	"context"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/client"
	"github.com/subpod/subpod/tests/node"
	"github.com/subpod/subpod/tests/registry"
	"github.com/subpod/subpod/tests/vm"
)

var attach = flag.Int("machine", 0, "use a machine that has its sshd on this loopback port, and leave it running")

const socket = "/run/user/1000/subpod/subpod.sock"

// host is the machine, with a registry that it can reach.
type host struct {
	*testing.T
	machine *vm.Machine
}

// in runs a script in the machine, which must succeed, and returns its output.
func (h host) in(user, script string) string {
	h.Helper()
	out, err := h.machine.Run(h.Context(), user, script)
	if err != nil {
		h.Fatal(err)
	}
	return strings.TrimSpace(out)
}

func tree(name string) string { return filepath.Join(node.Tree(), name) }

// boot starts the machine, with subpod as a service of its user and a registry whose
// busybox is of its architecture.
func boot(t *testing.T) host {
	t.Helper()
	cache := tree(".cache/vm/arm64")
	m, err := vm.Attach(cache, *attach)
	if *attach == 0 {
		m, err = vm.Boot(t.Context(), cache, "arm64")
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Stop() })
	h := host{t, m}
	images, err := registry.Start(registry.Options{Binary: tree(".cache/images/sysroot/usr/bin/docker-registry"), Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { images.Stop() })
	addr := strings.Replace(images.Addr, "127.0.0.1", "10.0.2.2", 1)
	conf := filepath.Join(t.TempDir(), "registries.conf")
	if err := os.WriteFile(conf, []byte(registry.Conf(addr)), 0o644); err != nil {
		t.Fatal(err)
	}
	files := map[string]string{
		".config/systemd/user/subpod.service": tree("configs/subpod.service"), ".config/containers/registries.conf": conf,
		"images": tree(".cache/vm/arm64/images"), "ocispec.test": tree(".cache/vm/arm64/ocispec.test"),
	}
	for _, name := range []string{"subpod", "subpod-server", "subpod-node", "subpod-monitor"} {
		files[".local/bin/"+name] = tree("bin/arm64/" + name)
	}
	if err := m.Send(t.Context(), vm.User, files); err != nil {
		t.Fatalf("%v (make test-arm64)", err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			log, _ := m.Run(context.Background(), vm.User, "journalctl --user -u subpod --no-pager -n 60 -o cat")
			t.Logf("the end of the daemon's log:\n%s", log)
		}
	})
	h.in(vm.User, `systemctl --user daemon-reload && systemctl --user start subpod
		./images archive -busybox /usr/bin/busybox -o busybox.tar
		subpod load -i busybox.tar && subpod push busybox `+addr+`/docker.io/library/busybox:latest && subpod rmi -f busybox`)
	return h
}

// TestWalk: a command, a container in the background with exec and logs, and a pod by the
// CRI, from an image that is pulled.
func TestWalk(t *testing.T) {
	h := boot(t)
	if out := h.in(vm.User, "subpod run --rm busybox uname -m"); out != "aarch64" {
		t.Errorf("run: %q", out)
	}
	h.in(vm.User, "subpod run -d --name walk busybox sh -c 'echo first; echo second; exec sleep 10000'")
	if out := h.in(vm.User, "subpod exec walk cat /proc/1/comm; for i in $(seq 100); do subpod logs walk | grep -q second && break; sleep .2; done; subpod logs walk"); out != "sleep\nfirst\nsecond" {
		t.Errorf("exec and logs: %q", out)
	}
	h.in(vm.User, "subpod rm -f -t 0 walk")
	t.Run("pod", h.pod)
	t.Run("seccomp", h.seccomp)
}

func (h host) pod(t *testing.T) {
	local, err := h.machine.Forward(t.Context(), vm.User, socket)
	if err != nil {
		t.Fatal(err)
	}
	c, err := client.Dial(local)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx := t.Context()
	config := &runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Name: "pod", Namespace: "arm64", Uid: "1"}}
	pod, err := c.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: config})
	if err != nil {
		t.Fatal(err)
	}
	ctr, err := c.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: pod.PodSandboxId, SandboxConfig: config,
		Config: &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: "c"},
			Image:    &runtimeapi.ImageSpec{Image: "docker.io/library/busybox:latest"},
			Command:  []string{"sleep", "10000"},
			Linux:    &runtimeapi.LinuxContainerConfig{Resources: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 64 << 20}},
		}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: ctr.ContainerId}); err != nil {
		t.Fatal(err)
	}
	// The 2 is seccomp's mode of a filter.
	const look = "cat /sys/fs/cgroup/memory.max; grep '^Seccomp:' /proc/1/status; ip -4 -o addr show eth0 | wc -l"
	out, err := c.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: ctr.ContainerId, Cmd: []string{"sh", "-c", look}})
	if err != nil {
		t.Fatal(err)
	}
	if got := string(out.Stdout); got != "67108864\nSeccomp:\t2\n1\n" {
		t.Errorf("in the pod: %q, %q", got, out.Stderr)
	}
	if _, err := c.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: pod.PodSandboxId}); err != nil {
		t.Error(err)
	}
	if _, err := c.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: pod.PodSandboxId}); err != nil {
		t.Error(err)
	}
}

// seccomp has the machine compare the programs: crun there compiles by libseccomp.
func (h host) seccomp(t *testing.T) {
	h.T = t
	out := h.in("root", `mkdir -p seccomp/pkg/ocispec seccomp/.cache/images && cp /usr/bin/busybox seccomp/.cache/images/ &&
		cd seccomp/pkg/ocispec && /home/`+vm.User+`/ocispec.test -test.v -test.timeout 30m -test.run '^TestSeccompEqualsLibseccomp$' 2>&1 || echo FAILED`)
	if strings.HasSuffix(out, "FAILED") || !strings.Contains(out, "decisions compared, 0 differ") {
		t.Errorf("%s", out)
	}
	t.Log(out)
}
