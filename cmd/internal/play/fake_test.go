package play

import (
	"context"
	"errors"
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
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/cmd/internal/kube"
	"github.com/subpod/subpod/pkg/api"
	"github.com/subpod/subpod/pkg/client"
	"github.com/subpod/subpod/pkg/workload"
)

// fakeServer is a server whose containers run no commands: exits decides when and
// how they exit. It records the requests that change something.
type fakeServer struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	runtimeapi.UnimplementedImageServiceServer
	api.Server

	// making is called before a pod is made, onPlay after it was, before the answer;
	// onFollow is Follow.
	making   func(ctx context.Context, name string)
	onPlay   func(name string) error
	onFollow func(ctx context.Context, name string, send func(*api.FollowEvent) error) error

	socket string
	images map[string]*runtimeapi.Image
	// running are containers of every pod; their hooks do not end by themselves.
	running []string

	mu      sync.Mutex
	log     []string
	pods    map[string]*fakePod // by ID
	specs   map[string]*workload.Spec
	created int
}

type fakePod struct {
	config *runtimeapi.PodSandboxConfig
	state  runtimeapi.PodSandboxState
}

// newFake starts a fake server and returns it with options for Play.
func newFake(t *testing.T) (*fakeServer, Options) {
	t.Helper()
	f := &fakeServer{
		making: func(context.Context, string) {},
		onPlay: func(string) error { return nil },
		onFollow: func(_ context.Context, name string, send func(*api.FollowEvent) error) error {
			return errors.Join(send(&api.FollowEvent{Up: true}), send(&api.FollowEvent{Final: true, Text: name + ": succeeded"}))
		},
		images: map[string]*runtimeapi.Image{"image": {Id: "image"}},
		pods:   map[string]*fakePod{}, specs: map[string]*workload.Spec{},
	}
	socket := filepath.Join(t.TempDir(), "s")
	f.socket = socket
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	// Stop waits for the handshake with a client that was killed; a busy machine takes long for
	// any.
	server := grpc.NewServer(grpc.ConnectionTimeout(20 * time.Second))
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

// ListContainers implements runtimeapi.RuntimeServiceServer.
func (f *fakeServer) ListContainers(context.Context, *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	out := &runtimeapi.ListContainersResponse{}
	for _, name := range f.running {
		out.Containers = append(out.Containers, &runtimeapi.Container{Id: name, Metadata: &runtimeapi.ContainerMetadata{Name: name}, State: runtimeapi.ContainerState_CONTAINER_RUNNING})
	}
	return out, nil
}

// ExecSync implements runtimeapi.RuntimeServiceServer.
func (f *fakeServer) ExecSync(ctx context.Context, req *runtimeapi.ExecSyncRequest) (*runtimeapi.ExecSyncResponse, error) {
	f.note("exec %s %s", req.ContainerId, strings.Join(req.Cmd, " "))
	<-ctx.Done()
	return nil, ctx.Err()
}

// StopContainer implements runtimeapi.RuntimeServiceServer.
func (f *fakeServer) StopContainer(_ context.Context, req *runtimeapi.StopContainerRequest) (*runtimeapi.StopContainerResponse, error) {
	f.note("stop %s %d", req.ContainerId, req.Timeout)
	return &runtimeapi.StopContainerResponse{}, nil
}

// Play implements api.Server.
func (f *fakeServer) Play(ctx context.Context, req *api.PlayRequest) (*api.PlayResponse, error) {
	cfg := &runtimeapi.PodSandboxConfig{}
	if err := proto.Unmarshal(req.Pod, cfg); err != nil {
		return nil, err
	}
	name := cfg.Metadata.Name
	f.making(ctx, name)
	f.mu.Lock()
	for _, p := range f.pods {
		if p.config.Metadata.Name == name {
			f.mu.Unlock()
			_ = grpc.SetTrailer(ctx, metadata.Pairs(api.ReasonTrailer, api.ReasonNameTaken))
			return nil, status.Error(codes.AlreadyExists, "taken")
		}
	}
	f.created++
	id := fmt.Sprintf("pod-%d", f.created)
	f.pods[id] = &fakePod{cfg, runtimeapi.PodSandboxState_SANDBOX_READY}
	f.specs[name] = req.Workload
	f.mu.Unlock()
	f.note("play %s", name)
	return &api.PlayResponse{PodID: id}, f.onPlay(name)
}

// Follow implements api.Server.
func (f *fakeServer) Follow(ctx context.Context, req *api.FollowRequest, send func(*api.FollowEvent) error) error {
	f.mu.Lock()
	p := f.pods[req.PodID]
	f.mu.Unlock()
	if p == nil {
		return status.Error(codes.NotFound, "no such pod")
	}
	return f.onFollow(ctx, p.config.Metadata.Name, send)
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

// parse returns the objects of a manifest.
func parse(t *testing.T, manifest string) *kube.Set {
	t.Helper()
	set, err := kube.Parse(kube.Source{Text: []byte(manifest)})
	if err != nil {
		t.Fatal(err)
	}
	return set
}

// podSpec returns the manifest of a pod.
func podSpec(name, spec string) string {
	return "---\napiVersion: v1\nkind: Pod\nmetadata: {name: " + name + "}\nspec: " + spec + "\n"
}
