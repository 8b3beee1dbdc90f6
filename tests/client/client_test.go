// Package client talks to a running daemon by k8s.io/cri-client: the remote
// runtime and image services that the kubelet itself uses. tests/fields starts the
// daemon and runs these tests; SUBPOD_CLIENT_SOCKET names its socket,
// SUBPOD_CLIENT_DIR a directory for logs.
package client

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	internalapi "k8s.io/cri-api/pkg/apis"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	crierrors "k8s.io/cri-api/pkg/errors"
	remote "k8s.io/cri-client/pkg"
	utilexec "k8s.io/utils/exec"
)

const (
	busybox  = "docker.io/library/busybox:latest"
	rejected = "gcr.io/k8s-staging-cri-tools/test-image-1:latest" // by the node's policy.json
)

type services struct {
	*testing.T
	internalapi.RuntimeService
	internalapi.ImageManagerService
}

// connect returns both services, that list by streams or by single answers.
func connect(t *testing.T, streaming bool) services {
	t.Helper()
	socket := os.Getenv("SUBPOD_CLIENT_SOCKET")
	if socket == "" {
		t.Fatal("no SUBPOD_CLIENT_SOCKET: run go test ./tests/fields -run TestKubeletClient")
	}
	ctx := t.Context()
	runtime, err := remote.NewRemoteRuntimeServiceBuilder().WithEndpoint("unix://" + socket).
		WithConnectionTimeout(10 * time.Second).WithUseStreaming(streaming).Build(ctx)
	if err != nil {
		t.Fatal(err)
	}
	images, err := remote.NewRemoteImageServiceBuilder().WithEndpoint("unix://" + socket).
		WithConnectionTimeout(10 * time.Second).WithUseStreaming(streaming).Build(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { runtime.Close(context.Background()); images.Close(context.Background()) })
	return services{t, runtime, images}
}

func (s services) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

func podConfig(name string) *runtimeapi.PodSandboxConfig {
	return &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "client", Uid: "uid-" + name},
		LogDirectory: filepath.Join(os.Getenv("SUBPOD_CLIENT_DIR"), name),
		Labels:       map[string]string{"app": name},
		Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
			NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
		}},
	}
}

func containerConfig(name string, command ...string) *runtimeapi.ContainerConfig {
	return &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: name}, Image: &runtimeapi.ImageSpec{Image: busybox},
		Command: command, LogPath: name + ".log",
		Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
			NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
		}},
	}
}

func TestLife(t *testing.T) {
	for _, streaming := range []bool{false, true} {
		t.Run(fmt.Sprint("streaming ", streaming), func(t *testing.T) { life(connect(t, streaming)) })
	}
}

// life calls everything that the kubelet calls for one pod.
func life(s services) {
	ctx := s.Context()
	version, err := s.Version(ctx, "0.1.0")
	s.must(err)
	if version.RuntimeName != "subpod" {
		s.Errorf("runtime %q", version.RuntimeName)
	}
	st, err := s.Status(ctx, true)
	s.must(err)
	if len(st.Status.Conditions) < 2 {
		s.Errorf("conditions %v", st.Status.Conditions)
	}
	_, err = s.RuntimeConfig(ctx)
	s.must(err)
	s.must(s.UpdateRuntimeConfig(ctx, &runtimeapi.RuntimeConfig{}))

	ref, err := s.PullImage(ctx, &runtimeapi.ImageSpec{Image: busybox}, nil, nil)
	s.must(err)
	image, err := s.ImageStatus(ctx, &runtimeapi.ImageSpec{Image: busybox}, true)
	s.must(err)
	if image.Image.Id != ref {
		s.Errorf("PullImage says %s, ImageStatus %s", ref, image.Image.Id)
	}
	images, err := s.ListImages(ctx, &runtimeapi.ImageFilter{Image: &runtimeapi.ImageSpec{Image: ref}})
	s.must(err)
	if len(images) != 1 {
		s.Errorf("%d images with the ID %s", len(images), ref)
	}
	_, err = s.ImageFsInfo(ctx)
	s.must(err)

	events := make(chan *runtimeapi.ContainerEventResponse, 100)
	eventsCtx, stop := context.WithCancel(ctx)
	connected, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- s.GetContainerEvents(eventsCtx, events, func(c runtimeapi.RuntimeService_GetContainerEventsClient) {
			c.Header()
			close(connected)
		})
	}()
	<-connected

	config := podConfig(fmt.Sprint("life-", time.Now().UnixNano()))
	s.must(os.MkdirAll(config.LogDirectory, 0o700))
	pod, err := s.RunPodSandbox(ctx, config, "")
	s.must(err)
	defer s.RemovePodSandbox(context.Background(), pod)
	ctr, err := s.CreateContainer(ctx, pod, containerConfig("c", "sh", "-c", "trap 'exit 4' TERM; touch /ready; while :; do sleep 0.1; done"), config)
	s.must(err)
	s.must(s.StartContainer(ctx, ctr))
	// As the kubelet's probes do.
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		_, _, err := s.ExecSync(ctx, ctr, []string{"test", "-e", "/ready"}, 10*time.Second)
		if err == nil {
			break
		}
		if time.Now().After(deadline) {
			s.Fatal(err)
		}
	}
	out, _, err := s.ExecSync(ctx, ctr, []string{"echo", "hello"}, 10*time.Second)
	if err != nil || string(out) != "hello\n" {
		s.Errorf("ExecSync: %q, %v", out, err)
	}
	s.lists(pod, ctr, config)
	s.must(s.UpdateContainerResources(ctx, ctr, &runtimeapi.ContainerResources{Linux: &runtimeapi.LinuxContainerResources{CpuShares: 100}}))
	_, err = s.UpdatePodSandboxResources(ctx, &runtimeapi.UpdatePodSandboxResourcesRequest{PodSandboxId: pod, Resources: &runtimeapi.LinuxContainerResources{CpuShares: 100}})
	s.must(err)
	s.must(s.ReopenContainerLog(ctx, ctr))
	exec, err := s.Exec(ctx, &runtimeapi.ExecRequest{ContainerId: ctr, Cmd: []string{"true"}, Stdout: true})
	s.must(err)
	attach, err := s.Attach(ctx, &runtimeapi.AttachRequest{ContainerId: ctr, Stdout: true})
	s.must(err)
	forward, err := s.PortForward(ctx, &runtimeapi.PortForwardRequest{PodSandboxId: pod, Port: []int32{80}})
	s.must(err)
	for _, url := range []string{exec.Url, attach.Url, forward.Url} {
		if !strings.HasPrefix(url, "http://127.0.0.1:") {
			s.Errorf("URL %q", url)
		}
	}
	s.must(s.StopContainer(ctx, ctr, 10))
	cs, err := s.ContainerStatus(ctx, ctr, true)
	s.must(err)
	if cs.Status.ExitCode != 4 || cs.Status.State != runtimeapi.ContainerState_CONTAINER_EXITED || cs.Status.ImageRef == "" {
		s.Errorf("status %v", cs.Status)
	}
	s.must(s.RemoveContainer(ctx, ctr))
	s.must(s.StopPodSandbox(ctx, pod))
	s.must(s.RemovePodSandbox(ctx, pod))
	if len(events) == 0 {
		s.Error("no events came")
	}
	stop()
	<-ended
}

// lists looks for pod and container in everything that lists them.
func (s services) lists(pod, ctr string, config *runtimeapi.PodSandboxConfig) {
	s.Helper()
	ctx := s.Context()
	pods, err := s.ListPodSandbox(ctx, &runtimeapi.PodSandboxFilter{LabelSelector: config.Labels})
	s.must(err)
	containers, err := s.ListContainers(ctx, &runtimeapi.ContainerFilter{PodSandboxId: pod})
	s.must(err)
	if len(pods) != 1 || pods[0].Id != pod || len(containers) != 1 || containers[0].Id != ctr {
		s.Errorf("lists: %v, %v", pods, containers)
	}
	ps, err := s.PodSandboxStatus(ctx, pod, true)
	s.must(err)
	if ps.Status.GetNetwork().GetIp() == "" || len(ps.Info) == 0 {
		s.Errorf("pod status %v", ps)
	}
	stats, err := s.ListContainerStats(ctx, &runtimeapi.ContainerStatsFilter{Id: ctr})
	s.must(err)
	podStats, err := s.ListPodSandboxStats(ctx, &runtimeapi.PodSandboxStatsFilter{Id: pod})
	s.must(err)
	metrics, err := s.ListPodSandboxMetrics(ctx)
	s.must(err)
	descriptors, err := s.ListMetricDescriptors(ctx)
	s.must(err)
	if len(stats) != 1 || len(podStats) != 1 || len(metrics) == 0 || len(descriptors) == 0 {
		s.Errorf("%d container statistics, %d of pods, %d metrics, %d descriptors", len(stats), len(podStats), len(metrics), len(descriptors))
	}
	one, err := s.ContainerStats(ctx, ctr)
	s.must(err)
	onePod, err := s.PodSandboxStats(ctx, pod)
	s.must(err)
	if one.GetAttributes().GetMetadata() == nil || onePod.GetAttributes().GetMetadata() == nil {
		s.Error("statistics without metadata: the kubelet would give up")
	}
}

// TestErrors: each error as the kubelet matches it (pkg/kubelet/images,
// pkg/kubelet/kuberuntime of Kubernetes 1.37).
func TestErrors(t *testing.T) {
	s := connect(t, false)
	ctx := t.Context()
	gone := strings.Repeat("0", 64)
	for what, err := range map[string]error{
		"ContainerStatus":          second(s.ContainerStatus(ctx, gone, false)),
		"PodSandboxStatus":         second(s.PodSandboxStatus(ctx, gone, false)),
		"ContainerStats":           second(s.ContainerStats(ctx, gone)),
		"PodSandboxStats":          second(s.PodSandboxStats(ctx, gone)),
		"StartContainer":           s.StartContainer(ctx, gone),
		"UpdateContainerResources": s.UpdateContainerResources(ctx, gone, &runtimeapi.ContainerResources{}),
		"ReopenContainerLog":       s.ReopenContainerLog(ctx, gone),
		"Exec":                     second(s.Exec(ctx, &runtimeapi.ExecRequest{ContainerId: gone, Cmd: []string{"true"}, Stdout: true})),
		"PortForward":              second(s.PortForward(ctx, &runtimeapi.PortForwardRequest{PodSandboxId: gone, Port: []int32{80}})),
		"CreateContainer":          second(s.CreateContainer(ctx, gone, containerConfig("c"), podConfig("gone"))),
	} {
		if !crierrors.IsNotFound(err) {
			t.Errorf("%s of what is not there: %v, want NotFound", what, err)
		}
	}
	// What is gone is stopped and removed: the kubelet ignores NotFound, and so does
	// the CRI ask for no error.
	for what, err := range map[string]error{
		"StopContainer": s.StopContainer(ctx, gone, 0), "RemoveContainer": s.RemoveContainer(ctx, gone),
		"StopPodSandbox": s.StopPodSandbox(ctx, gone), "RemovePodSandbox": s.RemovePodSandbox(ctx, gone),
		"RemoveImage": s.RemoveImage(ctx, &runtimeapi.ImageSpec{Image: "docker.io/library/none"}),
	} {
		if err != nil {
			t.Errorf("%s of what is not there: %v", what, err)
		}
	}
	for what, err := range map[string]error{
		"CheckpointContainer": s.CheckpointContainer(ctx, &runtimeapi.CheckpointContainerRequest{ContainerId: gone}),
		"CheckpointPod":       s.CheckpointPod(ctx, &runtimeapi.CheckpointPodRequest{PodSandboxId: gone}),
		"RestorePod":          second(s.RestorePod(ctx, &runtimeapi.RestorePodRequest{})),
	} {
		if status.Code(err) != codes.Unimplemented || !strings.Contains(err.Error(), "CRIU") {
			t.Errorf("%s: %v, want Unimplemented and why", what, err)
		}
	}
	for ref, want := range map[string]error{
		"127.0.0.1:1/no/registry:latest": crierrors.ErrRegistryUnavailable,
		rejected:                         crierrors.ErrSignatureValidationFailed,
	} {
		_, err := s.PullImage(ctx, &runtimeapi.ImageSpec{Image: ref}, nil, nil)
		if err == nil || !strings.HasPrefix(err.Error(), want.Error()+": ") {
			t.Errorf("pull of %s: %v, want the prefix %q", ref, err, want)
		}
	}
	if _, err := s.PullImage(ctx, &runtimeapi.ImageSpec{Image: "docker.io/library/none:none"}, nil, nil); !crierrors.IsNotFound(err) {
		t.Errorf("pull of an image that the registry does not have: %v, want NotFound", err)
	}
	podErrors(s)
}

// podErrors are those that need a pod.
func podErrors(s services) {
	ctx := s.Context()
	_, err := s.PullImage(ctx, &runtimeapi.ImageSpec{Image: busybox}, nil, nil)
	s.must(err)
	config := podConfig("errors")
	s.must(os.MkdirAll(config.LogDirectory, 0o700))
	pod, err := s.RunPodSandbox(ctx, config, "")
	s.must(err)
	defer s.RemovePodSandbox(context.Background(), pod)
	ctr, err := s.CreateContainer(ctx, pod, containerConfig("c", "sleep", "1000"), config)
	s.must(err)
	s.must(s.StartContainer(ctx, ctr))
	_, _, err = s.ExecSync(ctx, ctr, []string{"sleep", "100"}, time.Second)
	if !errors.Is(err, remote.ErrCommandTimedOut) {
		s.Errorf("ExecSync that takes too long: %v, want ErrCommandTimedOut", err)
	}
	_, stderr, err := s.ExecSync(ctx, ctr, []string{"sh", "-c", "echo oops >&2; exit 9"}, 10*time.Second)
	var exit utilexec.CodeExitError
	if !errors.As(err, &exit) || exit.Code != 9 || string(stderr) != "oops\n" {
		s.Errorf("ExecSync that fails: %v, %q; want exit code 9", err, stderr)
	}
	volume := containerConfig("volume", "true")
	volume.Mounts = []*runtimeapi.Mount{{ContainerPath: "/v", Image: &runtimeapi.ImageSpec{Image: busybox}, ImageSubPath: "no/such/path", Readonly: true}}
	_, err = s.CreateContainer(ctx, pod, volume, config)
	// The kubelet looks at the message of the gRPC status (doBackOff, startContainer).
	if st, _ := status.FromError(err); !strings.HasPrefix(st.Message(), crierrors.ErrImageVolumeMountFailed.Error()+": ") {
		s.Errorf("image volume with a sub path that is not there: %v, want the prefix %q", err, crierrors.ErrImageVolumeMountFailed)
	}

	// The handler "plain" is an OCI runtime that knows no recursive read-only mounts.
	config = podConfig("plain")
	s.must(os.MkdirAll(config.LogDirectory, 0o700))
	plain, err := s.RunPodSandbox(ctx, config, "plain")
	s.must(err)
	defer s.RemovePodSandbox(context.Background(), plain)
	recursive := containerConfig("recursive", "true")
	recursive.Mounts = []*runtimeapi.Mount{{ContainerPath: "/v", HostPath: config.LogDirectory, Readonly: true, RecursiveReadOnly: true}}
	_, err = s.CreateContainer(ctx, plain, recursive, config)
	if st, _ := status.FromError(err); !strings.HasPrefix(st.Message(), crierrors.ErrRROUnsupported.Error()+": ") {
		s.Errorf("recursive read-only mount that the handler lacks: %v, want the prefix %q", err, crierrors.ErrRROUnsupported)
	}
}

func second[T any](_ T, err error) error { return err }
