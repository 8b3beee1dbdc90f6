// Package crash breaks the real daemon in every way that an ordinary machine can
// break it, and checks the promises of docs/reliability.md. With -short it takes a
// sample of each table, without it all of it ('make crash').
package crash

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/tests/leak"
	"github.com/subpod/subpod/tests/node"
)

func TestMain(m *testing.M) { node.Main(m) }

const (
	busybox = node.Busybox
	nginx   = node.Nginx
)

// converge is how long the tests repeat a request after a fault until it is answered
// as if nothing had been: a bound for a test that would wait forever, no measure.
const converge = node.Converge

// rig is a node and a client that waits for a server that is away.
type rig struct {
	*node.Node
	t   testing.TB
	cri node.Client
	n   *atomic.Int32 // names given out
}

// in is the same rig for a subtest, which is the one that fails then.
func (r *rig) in(t testing.TB) *rig {
	sub := *r
	sub.t, sub.Node = t, r.For(t)
	return &sub
}

func newRig(t testing.TB, o node.Options) *rig {
	t.Helper()
	// Not what the machine's administrator has for CNI: see TestCNIFails.
	o.Config += node.Bridge
	return startedRig(t, node.Start(t, o))
}

// startedRig is the rig of a node that runs.
func startedRig(t testing.TB, n *node.Node) *rig {
	t.Helper()
	r := &rig{Node: n, t: t, n: new(atomic.Int32)}
	r.cri = r.dial(t, backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1.5, MaxDelay: 200 * time.Millisecond})
	return r
}

func (r *rig) dial(t testing.TB, b backoff.Config) node.Client {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+r.Socket,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20), grpc.WaitForReady(true)),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: b, MinConnectTimeout: 2 * time.Second}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return node.Client{RuntimeServiceClient: runtimeapi.NewRuntimeServiceClient(conn), ImageServiceClient: runtimeapi.NewImageServiceClient(conn)}
}

// ownPID is what the kubelet asks for by default.
var ownPID = &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}

// pod is a sandbox with one container, step by step.
type pod struct {
	r         *rig
	name      string
	sandbox   *runtimeapi.PodSandboxConfig
	container *runtimeapi.ContainerConfig
	podID, id string
}

// sleeper ends at SIGTERM at once, with 0.
var sleeper = []string{"sh", "-c", "trap 'exit 0' TERM; echo up; sleep 1000000 & wait"}

// newPod prepares the configurations of a pod; ports are published as they are.
func (r *rig) newPod(command []string, ports ...int32) *pod {
	r.t.Helper()
	p := &pod{r: r, name: fmt.Sprintf("p%d", r.n.Add(1))}
	p.sandbox = &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: p.name, Namespace: "crash", Uid: p.name},
		Hostname:     p.name,
		LogDirectory: filepath.Join(r.Dir, "logs", p.name),
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: ownPID}},
	}
	for _, port := range ports {
		p.sandbox.PortMappings = append(p.sandbox.PortMappings, &runtimeapi.PortMapping{ContainerPort: port, HostPort: port})
	}
	p.container = &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "c"}, Image: &runtimeapi.ImageSpec{Image: busybox},
		Command: command, LogPath: "c.log", Linux: &runtimeapi.LinuxContainerConfig{
			SecurityContext: &runtimeapi.LinuxContainerSecurityContext{NamespaceOptions: ownPID}},
	}
	if err := os.MkdirAll(p.sandbox.LogDirectory, 0o700); err != nil {
		r.t.Fatal(err)
	}
	return p
}

func (p *pod) run(ctx context.Context) error {
	resp, err := p.r.cri.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: p.sandbox})
	if err == nil {
		p.podID = resp.PodSandboxId
	}
	return err
}

func (p *pod) create(ctx context.Context) error {
	resp, err := p.r.cri.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: p.podID, Config: p.container, SandboxConfig: p.sandbox})
	if err == nil {
		p.id = resp.ContainerId
	}
	return err
}

func (p *pod) start(ctx context.Context) error {
	_, err := p.r.cri.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: p.id})
	return err
}

func (p *pod) stop(ctx context.Context) error {
	_, err := p.r.cri.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: p.id, Timeout: 1})
	return err
}

func (p *pod) remove(ctx context.Context) error {
	_, err := p.r.cri.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: p.id})
	return err
}

func (p *pod) stopPod(ctx context.Context) error {
	_, err := p.r.cri.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.podID})
	return err
}

func (p *pod) removePod(ctx context.Context) error {
	_, err := p.r.cri.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.podID})
	return err
}

// up brings the whole pod up. Asked again, it goes on where it has failed.
func (p *pod) up(ctx context.Context) error {
	if err := p.run(ctx); err != nil {
		return err
	}
	if err := p.create(ctx); err != nil {
		return err
	}
	return startedOrTold(p, ctx)
}

func (p *pod) status(ctx context.Context) (*runtimeapi.ContainerStatus, error) {
	resp, err := p.r.cri.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: p.id})
	return resp.GetStatus(), err
}

// isState fails unless the container is in the state.
func (p *pod) isState(ctx context.Context, want runtimeapi.ContainerState) error {
	s, err := p.status(ctx)
	if err == nil && s.State != want {
		err = fmt.Errorf("the container is %s (%s: %s), not %s", s.State, s.Reason, s.Message, want)
	}
	return err
}

// exec runs a command in the container, which must succeed.
func (p *pod) exec(ctx context.Context, cmd ...string) (string, error) {
	resp, err := p.r.cri.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: p.id, Cmd: cmd, Timeout: 60})
	if err == nil && resp.ExitCode != 0 {
		err = fmt.Errorf("%v ended with %d: %s", cmd, resp.ExitCode, resp.Stderr)
	}
	return string(resp.GetStdout()), err
}

// gone fails unless the daemon knows neither pod nor container.
func (p *pod) gone(ctx context.Context) error {
	pods, err := p.r.cri.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return err
	}
	for _, s := range pods.Items {
		if s.Metadata.Name == p.name {
			return fmt.Errorf("pod sandbox %s is still listed as %s", s.Id, s.State)
		}
	}
	if p.id == "" {
		return nil
	}
	if _, err := p.status(ctx); status.Code(err) != codes.NotFound {
		return fmt.Errorf("the status of the removed container: %v", err)
	}
	return nil
}

func (r *rig) pull(ctx context.Context, image string) error {
	_, err := r.cri.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: image}})
	return err
}

func (r *rig) removeImage(ctx context.Context, image string) error {
	_, err := r.cri.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: image}})
	return err
}

func (r *rig) hasImage(ctx context.Context, image string) (bool, error) {
	resp, err := r.cri.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: image}})
	return resp.GetImage() != nil, err
}

// must fails the test.
func (r *rig) must(what string, err error) {
	r.t.Helper()
	if err != nil {
		r.t.Fatalf("%s: %v", what, err)
	}
}

// again repeats a request until it succeeds, as a kubelet does, for no longer than
// converge.
func again(do func(context.Context) error) (took time.Duration, err error) {
	return againFor(converge, do)
}

func againFor(within time.Duration, do func(context.Context) error) (took time.Duration, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), within)
	defer cancel()
	begin := time.Now()
	var answer error // the last one that is not the end of our patience
	for {
		if err = do(ctx); err == nil {
			return time.Since(begin), nil
		}
		if status.Code(err) != codes.DeadlineExceeded {
			answer = err
		}
		if ctx.Err() != nil {
			return time.Since(begin), fmt.Errorf("%w; the last answer: %v", err, answer)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// eventually repeats a check for a time.
var eventually = node.EventuallyWithin

// picture is what must be the same when all pods of a test are gone.
func (r *rig) picture() leak.Snapshot {
	s := r.Look()
	for name, words := range s {
		// In another node the same mount is of another namespace.
		if before, _, ok := strings.Cut(name, "node/netns (nsfs net:"); ok {
			delete(s, name)
			s[before+"node/netns"] = words
		}
	}
	for _, pattern := range []string{
		"storage/overlay/*", "storage/overlay-layers/*", "storage/overlay-images/*", "storage/subpod/*/*", "net/*", "net/*/*", "*",
	} {
		files, _ := filepath.Glob(filepath.Join(r.DataDir, pattern))
		for _, f := range files {
			name := strings.TrimPrefix(f, r.DataDir)
			// A background sync of the pull before.
			if strings.Contains(name, "/unsynced/") || strings.HasSuffix(name, ".lock") {
				continue
			}
			s["data "+name] = ""
		}
	}
	return s
}

// settled compares with an earlier picture.
func (r *rig) settled(before leak.Snapshot) error {
	if left := leak.Left(before, r.picture); len(left) > 0 {
		return fmt.Errorf("left behind:\n\t%s", strings.Join(left, "\n\t"))
	}
	return nil
}

// warm brings one pod up and down, so that what is made once is made.
func (r *rig) warm() leak.Snapshot {
	r.t.Helper()
	p := r.newPod(sleeper, freePort(r.t))
	ctx := r.t.Context()
	r.must("pull", r.pull(ctx, busybox))
	r.must("warm up", p.up(ctx))
	r.must("warm up", p.removePod(ctx))
	r.must("warm up", r.pull(ctx, pulled))
	r.must("warm up", r.removeImage(ctx, pulled))
	r.must("warm up", r.pull(ctx, pulled))
	return r.picture()
}

// freePort finds a port that nobody listens on.
func freePort(t testing.TB) int32 {
	t.Helper()
	return int32(node.FreePort(t))
}
