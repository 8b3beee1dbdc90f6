package cri

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/tests/node"
)

// TestBadRequests: a clear error with the right code, and nothing left behind.
func TestBadRequests(t *testing.T) {
	n := node.Start(t, node.Options{})
	n.Crictl("pull", busybox)
	noLeaks(t, n)
	cri := n.CRI()
	sandbox := &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: "bad", Namespace: "tests", Uid: "uid-bad"},
		LogDirectory: filepath.Join(n.Dir, "logs"),
		Linux:        &runtimeapi.LinuxPodSandboxConfig{},
	}
	if err := os.MkdirAll(sandbox.LogDirectory, 0o700); err != nil {
		t.Fatal(err)
	}
	run, err := cri.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: sandbox})
	if err != nil {
		t.Fatal(err)
	}
	create := func(change func(*runtimeapi.ContainerConfig)) (string, error) {
		config := &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: "c"}, Image: &runtimeapi.ImageSpec{Image: busybox},
			Command: []string{"sleep", "60"}, LogPath: "c.log", Linux: &runtimeapi.LinuxContainerConfig{},
		}
		change(config)
		resp, err := cri.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: run.PodSandboxId, Config: config, SandboxConfig: sandbox})
		return resp.GetContainerId(), err
	}
	check := func(what string, err error, code codes.Code, words ...string) {
		t.Helper()
		if got := status.Code(err); got != code {
			t.Errorf("%s: code %v, want %v: %v", what, got, code, err)
		}
		for _, word := range words {
			if err != nil && !strings.Contains(err.Error(), word) {
				t.Errorf("%s: no %q in: %v", what, word, err)
			}
		}
	}
	containers := func() int {
		list, err := cri.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return len(list.Containers)
	}

	missing := filepath.Join(n.Dir, "no", "such", "source")
	_, err = create(func(c *runtimeapi.ContainerConfig) {
		c.Mounts = []*runtimeapi.Mount{{ContainerPath: "/data", HostPath: missing, Readonly: true}}
	})
	check("mount source is missing", err, codes.FailedPrecondition, missing)
	_, err = create(func(c *runtimeapi.ContainerConfig) { c.Image.Image = "docker.io/library/none:latest" })
	check("image is not there", err, codes.NotFound, "none")
	_, err = create(func(c *runtimeapi.ContainerConfig) { c.Metadata = nil })
	check("no metadata", err, codes.InvalidArgument, "metadata")
	_, err = create(func(c *runtimeapi.ContainerConfig) {
		c.Linux.SecurityContext = &runtimeapi.LinuxContainerSecurityContext{RunAsUsername: "nobody-knows"}
	})
	check("unknown user", err, codes.InvalidArgument, "nobody-knows")
	_, err = create(func(c *runtimeapi.ContainerConfig) { c.LogPath = "../../../outside.log" })
	check("log path outside the log directory", err, codes.InvalidArgument, "log")
	if got := containers(); got != 0 {
		t.Errorf("%d containers after requests that all failed", got)
	}

	id, err := create(func(c *runtimeapi.ContainerConfig) { c.Command = []string{"no-such-command"} })
	if err == nil {
		_, err = cri.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: id})
	}
	check("no such command", err, codes.InvalidArgument, "no-such-command")
	if id != "" {
		s := inspect(n, id).Status
		if s.State != "CONTAINER_EXITED" || s.Reason != "StartError" || !strings.Contains(s.Message, "no-such-command") {
			t.Errorf("no such command: state %s, reason %q, message %q; want EXITED, StartError and the runtime's words", s.State, s.Reason, s.Message)
		}
		if _, err := cri.RemoveContainer(t.Context(), &runtimeapi.RemoveContainerRequest{ContainerId: id}); err != nil {
			t.Error(err)
		}
	}

	first, err := create(func(*runtimeapi.ContainerConfig) {})
	if err != nil {
		t.Fatal(err)
	}
	again, err := create(func(*runtimeapi.ContainerConfig) {})
	if err != nil || again != first {
		t.Errorf("the same request once more: %s, %v; want the same container %s", again, err, first)
	}
	_, err = create(func(c *runtimeapi.ContainerConfig) { c.Command = []string{"true"} })
	check("name is taken", err, codes.AlreadyExists, first)
	other := proto.Clone(sandbox).(*runtimeapi.PodSandboxConfig)
	other.Hostname = "another"
	_, err = cri.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: other})
	check("pod name is taken", err, codes.AlreadyExists, run.PodSandboxId)

	_, err = cri.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: first, Cmd: []string{"true"}})
	check("exec in a container that does not run", err, codes.FailedPrecondition)
	_, err = cri.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: "0123"})
	check("no such container", err, codes.NotFound, "0123")
	_, err = cri.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: "0123"})
	check("no such pod", err, codes.NotFound, "0123")
	if _, err = cri.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: "0123"}); err != nil {
		check("stop of what is gone", err, codes.NotFound)
	}
	if _, err = cri.RemoveContainer(t.Context(), &runtimeapi.RemoveContainerRequest{ContainerId: "0123"}); err != nil {
		t.Errorf("removal of what is gone: %v", err)
	}
	if _, err = cri.RemovePodSandbox(t.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: "0123"}); err != nil {
		t.Errorf("removal of a pod that is gone: %v", err)
	}
	if _, err = cri.RemoveImage(t.Context(), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: "docker.io/library/none"}}); err != nil {
		t.Errorf("removal of an image that is gone: %v", err)
	}
}

func TestMalformedConfig(t *testing.T) {
	for _, c := range []struct {
		name, config string
		words        []string
	}{
		{"unknown key", "[daemon]\nlog_levle = \"info\"\n", []string{"subpod.toml:2", "log_levle"}},
		{"wrong type", "\n[node]\nmtu = \"big\"\n", []string{"subpod.toml:3", "mtu"}},
		{"bad value", "[node]\n\nuplink = \"carrier-pigeon\"\n", []string{"subpod.toml:3", "uplink", "slirp4netns"}},
		{"not TOML", "[daemon\n", []string{"subpod.toml:1"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := node.Prepare(t, node.Options{Config: c.config})
			n.Launch()
			if err := n.Wait(node.Converge); err == nil {
				t.Error("the daemon ended as if all were well")
			}
			expect(t, "message", n.Log(), c.words...)
		})
	}
}
