package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/api"
)

// fake is a server with a fixed list of pods and containers.
type fake struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	api.Server
	pods       []*runtimeapi.PodSandbox
	containers []*runtimeapi.Container
	copied     bytes.Buffer
	chunks     int
}

// serve serves f on a socket and returns a function that stops it.
func serve(t *testing.T, f *fake, socket string) (stop func()) {
	t.Helper()
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	runtimeapi.RegisterRuntimeServiceServer(s, f)
	api.Register(s, f)
	go func() { _ = s.Serve(l) }()
	t.Cleanup(s.Stop)
	return s.Stop
}

func newFake(t *testing.T) (*fake, *Client) {
	t.Helper()
	f, socket := &fake{}, filepath.Join(t.TempDir(), "s")
	serve(t, f, socket)
	c, err := Dial(socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return f, c
}

func (f *fake) addPod(id, namespace, name string) {
	f.pods = append(f.pods, &runtimeapi.PodSandbox{Id: id, Metadata: &runtimeapi.PodSandboxMetadata{Namespace: namespace, Name: name}})
}

func (f *fake) addContainer(id, pod, name string, attempt uint32) {
	f.containers = append(f.containers, &runtimeapi.Container{Id: id, PodSandboxId: pod, Metadata: &runtimeapi.ContainerMetadata{Name: name, Attempt: attempt}})
}

// ListPodSandbox implements runtimeapi.RuntimeServiceServer.
func (f *fake) ListPodSandbox(context.Context, *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	return &runtimeapi.ListPodSandboxResponse{Items: f.pods}, nil
}

// ListContainers implements runtimeapi.RuntimeServiceServer.
func (f *fake) ListContainers(context.Context, *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	return &runtimeapi.ListContainersResponse{Containers: f.containers}, nil
}

// StartContainer fails with a reason.
func (f *fake) StartContainer(ctx context.Context, _ *runtimeapi.StartContainerRequest) (*runtimeapi.StartContainerResponse, error) {
	_ = grpc.SetTrailer(ctx, metadata.Pairs(api.ReasonTrailer, api.ReasonCommandNotFound))
	return nil, status.Error(codes.InvalidArgument, "no such command")
}

// StopContainer fails without a message.
func (f *fake) StopContainer(context.Context, *runtimeapi.StopContainerRequest) (*runtimeapi.StopContainerResponse, error) {
	return nil, status.Error(codes.NotFound, "")
}

// Pull reports progress, then fails with a reason for the reference "missing".
func (f *fake) Pull(ctx context.Context, req *api.PullRequest, send func(*api.PullEvent) error) error {
	if err := send(&api.PullEvent{Downloaded: 1, Total: 2}); err != nil {
		return err
	}
	if req.Ref == "missing" {
		_ = grpc.SetTrailer(ctx, metadata.Pairs(api.ReasonTrailer, api.ReasonImageNotFound))
		return status.Error(codes.NotFound, "no such image")
	}
	return send(&api.PullEvent{Downloaded: 2, Total: 2, ID: "image"})
}

// CopyIn records what it gets.
func (f *fake) CopyIn(_ context.Context, next func() (*api.CopyInChunk, error)) (*api.Empty, error) {
	first, err := next()
	if err != nil {
		return nil, err
	}
	if first.Path == "/refused" {
		return nil, status.Error(codes.InvalidArgument, "refused")
	}
	for {
		chunk, err := next()
		if err == io.EOF {
			return &api.Empty{}, nil
		}
		if err != nil {
			return nil, err
		}
		f.chunks++
		f.copied.Write(chunk.Data)
	}
}

// LoadStream records what it gets.
func (f *fake) LoadStream(_ context.Context, next func() (*api.LoadChunk, error)) (*api.LoadResponse, error) {
	first, err := next()
	if err != nil {
		return nil, err
	}
	for {
		chunk, err := next()
		if err == io.EOF {
			return &api.LoadResponse{Images: []api.LoadedImage{{ID: "id", Tags: []string{first.Kind, first.Ref}}}}, nil
		}
		if err != nil {
			return nil, err
		}
		f.copied.Write(chunk.Data)
	}
}

func TestLoadStream(t *testing.T) {
	f, c := newFake(t)
	content := strings.Repeat("x", 2*copyChunk+1)
	images, err := c.LoadStream(t.Context(), "docker-archive", "app:1", strings.NewReader(content))
	if err != nil || f.copied.String() != content || fmt.Sprint(images) != "[{id [docker-archive app:1]}]" {
		t.Errorf("%v, %v; %d bytes", images, err, f.copied.Len())
	}
	if _, err := c.LoadStream(t.Context(), "", "", &failing{}); !errors.Is(err, errRead) {
		t.Errorf("a source that fails: %v", err)
	}
}

func TestContainer(t *testing.T) {
	f, c := newFake(t)
	f.addPod("aaaa1111", "default", "web")
	f.addContainer("11110000", "aaaa1111", "web", 0)
	f.addPod("aaaa2222", "default", "app")
	f.addContainer("22220000", "aaaa2222", "main", 0)
	f.addContainer("22220001", "aaaa2222", "main", 1) // it was restarted
	f.addContainer("22221111", "aaaa2222", "side", 0)
	f.addPod("bbbb3333", "kube-system", "dns")
	f.addContainer("33330000", "bbbb3333", "dns", 0)
	f.addPod("bbbb4444", "default", "twin")
	f.addContainer("44440000", "bbbb4444", "a", 0)
	f.addPod("bbbb5555", "other", "twin")
	f.addContainer("55550000", "bbbb5555", "twin", 0)
	f.addContainer("66660000", "gone", "orphan", 0) // its pod was removed meanwhile
	for ref, want := range map[string]string{
		"11110000": "11110000", "1111": "11110000", "web": "11110000", "app/main": "22220001", "app/side": "22221111",
		"kube-system/dns": "33330000", "333": "33330000", "bbbb3": "33330000", "twin": "44440000", "twin/a": "44440000", "other/twin": "55550000",
		"2222000": "22220001", // one of two attempts: the last one
	} {
		if got, err := c.Container(t.Context(), ref); err != nil || got.Id != want {
			t.Errorf("%s: %v, %v; want %s", ref, got.Container, err, want)
		}
	}
	for ref, want := range map[string]error{
		"nosuch": ErrNotFound, "": ErrNotFound, "11": ErrNotFound, "dns": ErrNotFound, "66660000": ErrNotFound,
		"app": ErrAmbiguous, "2222": ErrAmbiguous, "aaaa2": ErrAmbiguous,
	} {
		if got, err := c.Container(t.Context(), ref); !errors.Is(err, want) {
			t.Errorf("%q: %v, %v; want %v", ref, got.Container, err, want)
		}
	}
}

func TestPod(t *testing.T) {
	f, c := newFake(t)
	f.addPod("aaaa1111", "default", "web")
	f.addPod("aaaa2222", "other", "web")
	f.addPod("bbbb3333", "default", "twice")
	f.addPod("bbbb4444", "default", "twice") // of a kubelet: with another UID
	for ref, want := range map[string]string{"web": "aaaa1111", "other/web": "aaaa2222", "aaaa1": "aaaa1111", "bbbb4444": "bbbb4444"} {
		if got, err := c.Pod(t.Context(), ref); err != nil || got.Id != want {
			t.Errorf("%s: %v, %v; want %s", ref, got, err, want)
		}
	}
	for ref, want := range map[string]error{"nosuch": ErrNotFound, "aa": ErrNotFound, "aaa": ErrAmbiguous, "twice": ErrAmbiguous} {
		if got, err := c.Pod(t.Context(), ref); !errors.Is(err, want) {
			t.Errorf("%q: %v, %v; want %v", ref, got, err, want)
		}
	}
}

// TestPodMetadata checks that a name alone decides which pod sandbox is meant, and
// that no two names mean the same one.
func TestPodMetadata(t *testing.T) {
	a := PodMetadata("default", "a")
	if b := PodMetadata("default", "a"); a.String() != b.String() {
		t.Errorf("%v and %v", a, b)
	}
	for _, other := range []*runtimeapi.PodSandboxMetadata{PodMetadata("default", "b"), PodMetadata("other", "a")} {
		if a.String() == other.String() {
			t.Errorf("%v is the same", other)
		}
	}
	p := &runtimeapi.PodSandbox{Metadata: &runtimeapi.PodSandboxMetadata{Uid: "of an older version"}}
	if got := RunID(p); got != "of an older version" {
		t.Errorf("run ID of a pod without one: %q", got)
	}
	p.Annotations = map[string]string{api.AnnotationRunID: "run"}
	if got := RunID(p); got != "run" {
		t.Errorf("run ID: %q", got)
	}
}

func TestErrors(t *testing.T) {
	_, c := newFake(t)
	_, err := c.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{})
	if !HasReason(err, api.ReasonCommandNotFound) || IsNotFound(err) || err.Error() != "no such command" {
		t.Errorf("an error with a reason: %#v", err)
	}
	_, err = c.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{})
	if !IsNotFound(err) || HasReason(err, api.ReasonCommandNotFound) || err.Error() != "NotFound" {
		t.Errorf("an error without a message: %#v", err)
	}
	// The other service, and a stream.
	_, err = c.Pull(t.Context(), &api.PullRequest{Ref: "missing"}, nil)
	if !HasReason(err, api.ReasonImageNotFound) || !IsNotFound(err) {
		t.Errorf("an error of a stream: %#v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var e *Error
	if _, err := c.Pods(ctx); !errors.As(err, &e) || e.Code != codes.Canceled {
		t.Errorf("a canceled call: %#v", err)
	}
	if IsNotFound(nil) || IsNotFound(errors.New("x")) {
		t.Error("other errors are taken for NotFound")
	}
}

// TestOtherVersion: a daemon from before an update does not know each method.
func TestOtherVersion(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	go func() { _ = s.Serve(l) }()
	t.Cleanup(s.Stop)
	c, err := Dial(socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, unary := c.Top(t.Context(), "x")
	_, stream := c.Pull(t.Context(), &api.PullRequest{}, nil)
	for _, err := range []error{unary, stream} {
		if err == nil || !strings.Contains(err.Error(), "subpod reload") {
			t.Errorf("a method that there is not: %v", err)
		}
	}
}

func TestPull(t *testing.T) {
	_, c := newFake(t)
	var events []int64
	id, err := c.Pull(t.Context(), &api.PullRequest{Ref: "image"}, func(e *api.PullEvent) { events = append(events, e.Downloaded) })
	if err != nil || id != "image" || len(events) != 2 {
		t.Errorf("%q, %v, %v", id, err, events)
	}
}

func TestCopyIn(t *testing.T) {
	f, c := newFake(t)
	content := strings.Repeat("x", 2*copyChunk+1)
	if err := c.CopyIn(t.Context(), "id", "/", strings.NewReader(content)); err != nil || f.copied.String() != content || f.chunks < 3 {
		t.Errorf("%v; %d bytes in %d chunks", err, f.copied.Len(), f.chunks)
	}
	if err := c.CopyIn(t.Context(), "id", "/", strings.NewReader("")); err != nil {
		t.Errorf("nothing: %v", err)
	}
	broken := io.MultiReader(strings.NewReader("x"), &failing{})
	if err := c.CopyIn(t.Context(), "id", "/", broken); !errors.Is(err, errRead) {
		t.Errorf("a source that fails: %v", err)
	}
	// The server's error, not one of the connection, also with more to send.
	var e *Error
	if err := c.CopyIn(t.Context(), "id", "/refused", strings.NewReader(strings.Repeat("x", 16<<20))); !errors.As(err, &e) || e.Message != "refused" {
		t.Errorf("a refused copy: %v", err)
	}
}

var errRead = errors.New("read failed")

type failing struct{}

// Read implements io.Reader.
func (*failing) Read([]byte) (int, error) { return 0, errRead }

func TestDial(t *testing.T) {
	dir := t.TempDir()
	socket := filepath.Join(dir, "s")
	if _, err := Dial(socket); !errors.Is(err, ErrNoDaemon) || !strings.Contains(err.Error(), "subpod daemon") {
		t.Errorf("no socket: %v", err)
	}
	stop := serve(t, &fake{}, socket)
	c, err := Dial(socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Pods(t.Context()); err != nil {
		t.Fatal(err)
	}
	// A server that is restarted, as by a reload, is found again.
	stop()
	_ = os.Remove(socket)
	f := &fake{}
	f.addPod("aaaa1111", "default", "web")
	serve(t, f, socket)
	var pods *runtimeapi.ListPodSandboxResponse
	for range 10 { // the first calls may still meet the old connection
		if pods, err = c.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{}, grpc.WaitForReady(true)); err == nil {
			break
		}
	}
	if err != nil || len(pods.Items) != 1 {
		t.Errorf("after a restart: %v, %v", pods, err)
	}
	if os.Geteuid() == 0 {
		t.Skip("the rest: root may connect to every socket")
	}
	if err := os.Chmod(socket, 0); err != nil {
		t.Fatal(err)
	}
	// No reason to start one.
	if _, err := Dial(socket); errors.Is(err, ErrNoDaemon) || !errors.Is(err, os.ErrPermission) || !strings.Contains(err.Error(), "only the user who runs the daemon") {
		t.Errorf("a socket of somebody else: %v", err)
	}
}

// A client that makes no call leaves no connection behind: the server would hear nothing
// on it, and wait.
func TestCloseWithoutACall(t *testing.T) {
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := Dial(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the connection after Close: %v", err)
	}
}
