package vm

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/client"
)

const image = "docker.io/library/busybox:latest"

var serial atomic.Int32

// pod is a pod sandbox in the machine.
type pod struct {
	t      *testing.T
	c      *client.Client
	id     string
	config *runtimeapi.PodSandboxConfig
}

// runPod runs a pod sandbox that is removed at the end of the test.
func runPod(t *testing.T, c *client.Client, handler, parent string, change ...func(*runtimeapi.PodSandboxConfig)) *pod {
	t.Helper()
	if _, err := c.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: image}}); err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("pod%d", serial.Add(1))
	p := &pod{t: t, c: c, config: &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "vm", Uid: fmt.Sprint(name, time.Now().UnixNano())},
		LogDirectory: "/tmp/logs/" + name,
		Linux:        &runtimeapi.LinuxPodSandboxConfig{CgroupParent: parent},
	}}
	for _, f := range change {
		f(p.config)
	}
	resp, err := c.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: p.config, RuntimeHandler: handler})
	if err != nil {
		t.Fatal(err)
	}
	p.id = resp.PodSandboxId
	t.Cleanup(func() { p.remove() })
	return p
}

func (p *pod) remove() {
	p.t.Helper()
	if p.id == "" {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	if _, err := p.c.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.id}); err != nil {
		p.t.Error(err)
	}
	if _, err := p.c.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.id}); err != nil {
		p.t.Error(err)
	}
	p.id = ""
}

// start makes and starts a container that runs a shell script.
func (p *pod) start(script string, limits *runtimeapi.LinuxContainerResources) string {
	p.t.Helper()
	resp, err := p.c.CreateContainer(p.t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, SandboxConfig: p.config,
		Config: &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: fmt.Sprintf("c%d", serial.Add(1))},
			Image:    &runtimeapi.ImageSpec{Image: image},
			Command:  []string{"sh", "-c", script},
			Linux:    &runtimeapi.LinuxContainerConfig{Resources: limits},
		}})
	if err != nil {
		p.t.Fatal(err)
	}
	if _, err := p.c.StartContainer(p.t.Context(), &runtimeapi.StartContainerRequest{ContainerId: resp.ContainerId}); err != nil {
		p.t.Fatal(err)
	}
	return resp.ContainerId
}

// exec runs a script in a container and returns its output.
func (p *pod) exec(id, script string) string {
	p.t.Helper()
	resp, err := p.c.ExecSync(p.t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"sh", "-c", script}, Timeout: 60})
	if err != nil {
		p.t.Fatal(err)
	}
	if resp.ExitCode != 0 {
		p.t.Fatalf("exec %q: exit code %d: %s", script, resp.ExitCode, resp.Stderr)
	}
	return strings.TrimSpace(string(resp.Stdout))
}

// file is a control file of the container's own cgroup, seen from inside.
func (p *pod) file(id, name string) string {
	p.t.Helper()
	return p.exec(id, "cat /sys/fs/cgroup/"+name)
}

// files are several such files, of a line each: one command in a container takes the
// machine long.
func (p *pod) files(id string, names ...string) map[string]string {
	p.t.Helper()
	return byFile(p.exec(id, "cd /sys/fs/cgroup; grep -s '' "+strings.Join(names, " ")))
}

// byFile takes the lines "FILE:TEXT" that grep prints of several files apart.
func byFile(lines string) map[string]string {
	files := map[string]string{}
	for line := range strings.Lines(lines) {
		file, text, _ := strings.Cut(strings.TrimSpace(line), ":")
		files[file] = text
	}
	return files
}

// exited waits for the container's end.
func (p *pod) exited(id string) *runtimeapi.ContainerStatus {
	p.t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(500 * time.Millisecond) {
		resp, err := p.c.ContainerStatus(p.t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: id})
		if err != nil {
			p.t.Fatal(err)
		}
		if resp.Status.State == runtimeapi.ContainerState_CONTAINER_EXITED {
			return resp.Status
		}
		if time.Now().After(deadline) {
			p.t.Fatalf("container %s has not ended: %v", id, resp.Status)
		}
	}
}

// cgroups returns the cgroups of the machine whose name has the ID in it.
func cgroups(t *testing.T, id string) []string {
	t.Helper()
	return strings.Fields(as(t, "root", "find /sys/fs/cgroup -type d -name '*"+id+"*' -prune"))
}
