package play

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/cmd/internal/kube"
	"github.com/subpod/subpod/pkg/api"
	"github.com/subpod/subpod/pkg/client"
)

// fakeServer is a server whose containers run no commands: exits decides when and
// how they exit. It records the requests that change something.
type fakeServer struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	runtimeapi.UnimplementedImageServiceServer
	api.Server

	// exits returns the exit code of an attempt of a container, which exits at once,
	// or ok = false for one that runs until it is stopped.
	exits func(name string, attempt uint32) (code int32, ok bool)
	// exec returns the exit code of a command.
	exec func(command string) int32
	// onRun is called after a pod sandbox was created, before the answer.
	onRun func(name string)
	// onWait returns the error of a call of Wait, before it waits.
	onWait func() error
	images map[string]*runtimeapi.Image

	mu         sync.Mutex
	log        []string
	pods       map[string]*fakePod // by ID
	containers map[string]*fakeContainer
	created    int
}

type fakePod struct {
	config *runtimeapi.PodSandboxConfig
	state  runtimeapi.PodSandboxState
}

type fakeContainer struct {
	pod    string
	config *runtimeapi.ContainerConfig
	state  runtimeapi.ContainerState
	code   int32
	exited chan struct{}
}

// newFake starts a fake server and returns it with options for Play.
func newFake(t *testing.T) (*fakeServer, Options) {
	t.Helper()
	f := &fakeServer{
		exits: func(string, uint32) (int32, bool) { return 0, true },
		exec:  func(string) int32 { return 0 },
		onRun: func(string) {}, onWait: func() error { return nil },
		images: map[string]*runtimeapi.Image{"image": {Id: "image"}},
		pods:   map[string]*fakePod{}, containers: map[string]*fakeContainer{},
	}
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	runtimeapi.RegisterRuntimeServiceServer(server, f)
	runtimeapi.RegisterImageServiceServer(server, f)
	api.Register(server, f)
	go func() { _ = server.Serve(l) }()
	t.Cleanup(server.Stop)
	c, err := client.Dial(socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	dir := t.TempDir()
	return f, Options{
		Client: c, DataDir: filepath.Join(dir, "data"), RunDir: filepath.Join(dir, "run"),
		Report: func(format string, args ...any) { f.note("report: "+format, args...) },
		Pull: func(_ context.Context, ref string) error {
			f.note("pull %s", ref)
			f.mu.Lock()
			defer f.mu.Unlock()
			f.images[ref] = &runtimeapi.Image{Id: ref}
			return nil
		},
		Remove: func(_ context.Context, dir string) error {
			f.note("remove %s", filepath.Base(filepath.Dir(dir)))
			return removeAll(dir)
		},
		FirstBackoff: time.Millisecond,
	}
}

func (f *fakeServer) note(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.log = append(f.log, fmt.Sprintf(format, args...))
}

// notes returns the recorded lines that begin with one of the prefixes.
func (f *fakeServer) notes(prefixes ...string) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []string
	for _, line := range f.log {
		if slices.ContainsFunc(prefixes, func(p string) bool { return strings.HasPrefix(line, p) }) {
			out = append(out, line)
		}
	}
	return out
}

func (f *fakeServer) podNames() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []string
	for _, p := range f.pods {
		out = append(out, p.config.Metadata.Name)
	}
	slices.Sort(out)
	return out
}

// RunPodSandbox implements runtimeapi.RuntimeServiceServer.
func (f *fakeServer) RunPodSandbox(ctx context.Context, req *runtimeapi.RunPodSandboxRequest) (*runtimeapi.RunPodSandboxResponse, error) {
	m := req.Config.Metadata
	f.mu.Lock()
	for _, p := range f.pods {
		if x := p.config.Metadata; x.Name == m.Name && x.Namespace == m.Namespace && x.Uid == m.Uid && x.Attempt == m.Attempt {
			f.mu.Unlock()
			_ = grpc.SetTrailer(ctx, metadata.Pairs(api.ReasonTrailer, api.ReasonNameTaken))
			return nil, status.Error(codes.AlreadyExists, "taken")
		}
	}
	f.created++
	id := fmt.Sprintf("pod-%d", f.created)
	f.pods[id] = &fakePod{req.Config, runtimeapi.PodSandboxState_SANDBOX_READY}
	f.mu.Unlock()
	f.note("run %s", m.Name)
	f.onRun(m.Name)
	return &runtimeapi.RunPodSandboxResponse{PodSandboxId: id}, ctx.Err()
}

// PodSandboxStatus implements runtimeapi.RuntimeServiceServer.
func (f *fakeServer) PodSandboxStatus(_ context.Context, req *runtimeapi.PodSandboxStatusRequest) (*runtimeapi.PodSandboxStatusResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	p := f.pods[req.PodSandboxId]
	if p == nil {
		return nil, status.Error(codes.NotFound, "no such pod")
	}
	return &runtimeapi.PodSandboxStatusResponse{Status: &runtimeapi.PodSandboxStatus{
		Id: req.PodSandboxId, State: p.state, Network: &runtimeapi.PodSandboxNetworkStatus{Ip: "10.0.0.1"},
		Linux: &runtimeapi.LinuxPodSandboxStatus{Namespaces: &runtimeapi.Namespace{Options: p.config.Linux.SecurityContext.NamespaceOptions}},
	}}, nil
}

// ListPodSandbox implements runtimeapi.RuntimeServiceServer.
func (f *fakeServer) ListPodSandbox(_ context.Context, req *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := &runtimeapi.ListPodSandboxResponse{}
	for id, p := range f.pods {
		matches := true
		for k, v := range req.Filter.GetLabelSelector() {
			matches = matches && p.config.Labels[k] == v
		}
		if matches {
			out.Items = append(out.Items, &runtimeapi.PodSandbox{Id: id, Metadata: p.config.Metadata, State: p.state, Labels: p.config.Labels, Annotations: p.config.Annotations})
		}
	}
	return out, nil
}

// StopPodSandbox implements runtimeapi.RuntimeServiceServer.
func (f *fakeServer) StopPodSandbox(_ context.Context, req *runtimeapi.StopPodSandboxRequest) (*runtimeapi.StopPodSandboxResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if p := f.pods[req.PodSandboxId]; p != nil {
		p.state = runtimeapi.PodSandboxState_SANDBOX_NOTREADY
		f.log = append(f.log, "stop pod "+p.config.Metadata.Name)
	}
	return &runtimeapi.StopPodSandboxResponse{}, nil
}

// RemovePodSandbox implements runtimeapi.RuntimeServiceServer.
func (f *fakeServer) RemovePodSandbox(_ context.Context, req *runtimeapi.RemovePodSandboxRequest) (*runtimeapi.RemovePodSandboxResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.pods, req.PodSandboxId)
	return &runtimeapi.RemovePodSandboxResponse{}, nil
}

// CreateContainer implements runtimeapi.RuntimeServiceServer.
func (f *fakeServer) CreateContainer(_ context.Context, req *runtimeapi.CreateContainerRequest) (*runtimeapi.CreateContainerResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.created++
	id := fmt.Sprintf("container-%d", f.created)
	f.containers[id] = &fakeContainer{pod: req.PodSandboxId, config: req.Config, state: runtimeapi.ContainerState_CONTAINER_CREATED, exited: make(chan struct{})}
	return &runtimeapi.CreateContainerResponse{ContainerId: id}, nil
}

// StartContainer implements runtimeapi.RuntimeServiceServer.
func (f *fakeServer) StartContainer(_ context.Context, req *runtimeapi.StartContainerRequest) (*runtimeapi.StartContainerResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := f.containers[req.ContainerId]
	m := c.config.Metadata
	f.log = append(f.log, fmt.Sprintf("start %s/%d", m.Name, m.Attempt))
	c.state = runtimeapi.ContainerState_CONTAINER_RUNNING
	if code, ok := f.exits(m.Name, m.Attempt); ok {
		c.exit(code)
	}
	return &runtimeapi.StartContainerResponse{}, nil
}

func (c *fakeContainer) exit(code int32) {
	if c.state == runtimeapi.ContainerState_CONTAINER_RUNNING {
		c.state, c.code = runtimeapi.ContainerState_CONTAINER_EXITED, code
		close(c.exited)
	}
}

// StopContainer implements runtimeapi.RuntimeServiceServer.
func (f *fakeServer) StopContainer(_ context.Context, req *runtimeapi.StopContainerRequest) (*runtimeapi.StopContainerResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := f.containers[req.ContainerId]
	f.log = append(f.log, fmt.Sprintf("stop %s/%d after %d s", c.config.Metadata.Name, c.config.Metadata.Attempt, req.Timeout))
	c.exit(137)
	return &runtimeapi.StopContainerResponse{}, nil
}

// RemoveContainer implements runtimeapi.RuntimeServiceServer.
func (f *fakeServer) RemoveContainer(_ context.Context, req *runtimeapi.RemoveContainerRequest) (*runtimeapi.RemoveContainerResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	m := f.containers[req.ContainerId].config.Metadata
	f.log = append(f.log, fmt.Sprintf("remove %s/%d", m.Name, m.Attempt))
	delete(f.containers, req.ContainerId)
	return &runtimeapi.RemoveContainerResponse{}, nil
}

// ListContainers implements runtimeapi.RuntimeServiceServer.
func (f *fakeServer) ListContainers(_ context.Context, req *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := &runtimeapi.ListContainersResponse{}
	for id, c := range f.containers {
		if c.pod == req.Filter.GetPodSandboxId() {
			out.Containers = append(out.Containers, &runtimeapi.Container{Id: id, PodSandboxId: c.pod, Metadata: c.config.Metadata, State: c.state})
		}
	}
	return out, nil
}

// ExecSync implements runtimeapi.RuntimeServiceServer.
func (f *fakeServer) ExecSync(_ context.Context, req *runtimeapi.ExecSyncRequest) (*runtimeapi.ExecSyncResponse, error) {
	command := strings.Join(req.Cmd, " ")
	f.note("exec %s", command)
	return &runtimeapi.ExecSyncResponse{ExitCode: f.exec(command)}, nil
}

// Status implements runtimeapi.RuntimeServiceServer.
func (f *fakeServer) Status(context.Context, *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error) {
	return &runtimeapi.StatusResponse{Info: map[string]string{
		"node": `{"UIDMap": [{"Container": 0, "Size": 1}, {"Container": 1, "Size": 196607}], "GIDMap": [{"Container": 0, "Size": 196608}]}`,
	}}, nil
}

// ImageStatus implements runtimeapi.ImageServiceServer.
func (f *fakeServer) ImageStatus(_ context.Context, req *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return &runtimeapi.ImageStatusResponse{Image: f.images[req.Image.Image]}, nil
}

// Wait implements api.Server.
func (f *fakeServer) Wait(ctx context.Context, req *api.WaitRequest) (*api.WaitResponse, error) {
	if err := f.onWait(); err != nil {
		return nil, err
	}
	f.mu.Lock()
	c := f.containers[req.ContainerID]
	f.mu.Unlock()
	select {
	case <-c.exited:
		return &api.WaitResponse{ExitCode: c.code}, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// parse returns the objects of a manifest.
func parse(t *testing.T, manifest string) *kube.Set {
	t.Helper()
	set, err := kube.Parse(strings.NewReader(manifest))
	if err != nil {
		t.Fatal(err)
	}
	return set
}

// podSpec returns the manifest of a pod.
func podSpec(name, spec string) string {
	return "---\napiVersion: v1\nkind: Pod\nmetadata: {name: " + name + "}\nspec: " + spec + "\n"
}
