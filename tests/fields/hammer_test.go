package fields

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/tests/node"
)

const (
	hammerClients = 8
	hammerTime    = 12 * time.Second
	// hammerCall is how long one call may take: more is a deadlock.
	hammerCall = 90 * time.Second
)

// TestHammer: eight clients make, start, exec into, stop and remove the same and
// different pods and containers. No call hangs, none fails but for the state that
// another client has brought about, no container runs twice, nothing is left.
func TestHammer(t *testing.T) {
	start(t, nil, func(e env) {
		h := &hammer{env: e, dir: hostDir(e, e.n.Dir, "hammer"), calls: map[string]int{}}
		end := time.Now().Add(hammerTime)
		var clients sync.WaitGroup
		for i := range hammerClients {
			conn, err := node.Dial(e.n.Socket)
			e.must(err)
			defer conn.Close()
			c := &hammerClient{hammer: h, number: i, random: rand.New(rand.NewPCG(uint64(i), 42)),
				RuntimeServiceClient: runtimeapi.NewRuntimeServiceClient(conn)}
			clients.Go(func() {
				for (time.Now().Before(end) || h.little() && time.Now().Before(end.Add(node.Converge))) && !e.Failed() {
					c.round()
				}
			})
		}
		clients.Wait()
		e.Logf("calls: %v", h.calls)
		if h.little() {
			e.Errorf("too little happened: %v", h.calls)
		}
		if _, err := os.Stat(filepath.Join(h.dir, "twice")); err == nil {
			e.Error("the command of a container ran twice")
		}
		list, err := e.cri.ListPodSandbox(e.Context(), &runtimeapi.ListPodSandboxRequest{})
		e.must(err)
		for _, p := range list.Items {
			_, err := e.cri.RemovePodSandbox(e.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.Id})
			e.must(err)
		}
		rest, err := e.cri.ListContainers(e.Context(), &runtimeapi.ListContainersRequest{})
		e.must(err)
		e.equal("containers without a pod", len(rest.Containers), 0)
	})
}

// hammer is what the clients share.
type hammer struct {
	env
	dir   string // where a container tells that it runs a second time
	mu    sync.Mutex
	calls map[string]int
}

func (h *hammer) count(what string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.calls[what]++
}

// little is whether too little has happened, as it may on a slow machine.
func (h *hammer) little() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.calls["started"] < 10 || h.calls["exec"] < 10
}

type hammerClient struct {
	*hammer
	runtimeapi.RuntimeServiceClient
	number int
	random *rand.Rand
}

// expected are the codes with which a call may lose against another client.
var expected = []codes.Code{codes.OK, codes.NotFound, codes.FailedPrecondition, codes.AlreadyExists, codes.Aborted}

// call checks one call: its time, and its code.
func call[Q, A any](c *hammerClient, what string, f func(context.Context, Q, ...grpc.CallOption) (A, error), request Q) (A, bool) {
	ctx, cancel := context.WithTimeout(context.Background(), hammerCall)
	defer cancel()
	answer, err := f(ctx, request)
	if code := status.Code(err); !slices.Contains(expected, code) {
		c.Errorf("client %d: %s: %v", c.number, what, err)
	}
	if err == nil {
		c.count(what)
	}
	return answer, err == nil
}

// round is one life of a pod: of its own, or of one of two that all clients share.
func (c *hammerClient) round() {
	name := fmt.Sprintf("hammer-own-%d", c.number)
	if c.random.IntN(2) == 0 {
		name = fmt.Sprintf("hammer-shared-%d", c.random.IntN(2))
	}
	config := &podConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: name, Namespace: c.handler, Uid: name},
		Linux:    &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: &nsOption{Pid: nsContainer}}},
	}
	pod, ok := call(c, "pod", c.RunPodSandbox, &runtimeapi.RunPodSandboxRequest{Config: config, RuntimeHandler: c.handler})
	if !ok {
		// A stopped pod has the name: it must go first.
		c.removeByName(name)
		return
	}
	id := pod.PodSandboxId
	for range 1 + c.random.IntN(2) {
		attempt := uint32(c.random.IntN(1 << 30))
		if c.random.IntN(3) == 0 {
			attempt = uint32(c.random.IntN(3)) // the same as another client's
		}
		c.container(id, config, attempt)
	}
	switch c.random.IntN(4) {
	case 0:
		call(c, "stopped pod", c.StopPodSandbox, &runtimeapi.StopPodSandboxRequest{PodSandboxId: id})
	case 1, 2:
		call(c, "removed pod", c.RemovePodSandbox, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id})
	}
}

func (c *hammerClient) removeByName(name string) {
	list, ok := call(c, "list", c.ListPodSandbox, &runtimeapi.ListPodSandboxRequest{})
	if !ok {
		return
	}
	for _, p := range list.Items {
		if p.Metadata.Name == name && p.State == runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
			call(c, "removed pod", c.RemovePodSandbox, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.Id})
		}
	}
}

func (c *hammerClient) container(podID string, config *podConfig, attempt uint32) {
	// The writable layer is the container's own: what finds its mark there has run
	// before.
	script := `mkdir /mark || echo twice >>/runs/twice; trap 'exit 0' TERM; while :; do sleep 0.1; done`
	ctr := ctrFor("c", sh(script), mounts(&runtimeapi.Mount{ContainerPath: "/runs", HostPath: c.dir}))
	ctr.Metadata.Attempt, ctr.LogPath = attempt, ""
	made, ok := call(c, "created", c.CreateContainer, &runtimeapi.CreateContainerRequest{PodSandboxId: podID, Config: ctr, SandboxConfig: config})
	if !ok {
		return
	}
	id := made.ContainerId
	call(c, "started", c.StartContainer, &runtimeapi.StartContainerRequest{ContainerId: id})
	for range c.random.IntN(3) {
		exec, ok := call(c, "exec", c.ExecSync, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"echo", "x"}, Timeout: 60})
		if ok && exec.ExitCode == 0 && string(exec.Stdout) != "x\n" {
			c.Errorf("client %d: exec: %q", c.number, exec.Stdout)
		}
	}
	call(c, "status", c.ContainerStatus, &runtimeapi.ContainerStatusRequest{ContainerId: id})
	call(c, "stats", c.ListContainerStats, &runtimeapi.ListContainerStatsRequest{})
	if c.random.IntN(2) == 0 {
		call(c, "stopped", c.StopContainer, &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: int64(c.random.IntN(2))})
	}
	if c.random.IntN(2) == 0 {
		call(c, "removed", c.RemoveContainer, &runtimeapi.RemoveContainerRequest{ContainerId: id})
	}
}
