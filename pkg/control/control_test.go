package control_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/api"
	"github.com/subpod/subpod/pkg/control"
	"github.com/subpod/subpod/pkg/state"
	"github.com/subpod/subpod/pkg/stats"
	"github.com/subpod/subpod/pkg/stdio"
)

// core is a fake of what the service calls. It records the calls; fail has the errors
// that they return. A container echoes its input and exits with 3.
type core struct {
	mu    sync.Mutex
	calls []string
	fail  map[string]error
}

func newCore() *core { return &core{fail: map[string]error{}} }

func (c *core) called(format string, args ...any) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	call := fmt.Sprintf(format, args...)
	c.calls = append(c.calls, call)
	name, _, _ := strings.Cut(call, " ")
	return c.fail[name]
}

func (c *core) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return strings.Join(c.calls, ", ")
}

func (c *core) RunPodWith(_ context.Context, cfg *runtimeapi.PodSandboxConfig, handler string, ctr *runtimeapi.ContainerConfig) (podID, id string, err error) {
	return "p1", "c1", c.called("RunPodWith %s %s %s", cfg.GetMetadata().GetName(), handler, ctr.GetMetadata().GetName())
}

func (c *core) CreateContainer(_ context.Context, podID string, cfg *runtimeapi.ContainerConfig) (string, error) {
	return "c1", c.called("CreateContainer %s %s", podID, cfg.GetMetadata().GetName())
}

func (c *core) RemoveContainer(_ context.Context, id string) error {
	return c.called("RemoveContainer %s", id)
}

func (c *core) ExecDetached(_ context.Context, id string, cmd []string, tty bool, o api.ExecOptions) error {
	return c.called("ExecDetached %s %v tty=%t %+v", id, cmd, tty, o)
}

func (c *core) RemoveUnstarted(_ context.Context, podID, id string) error {
	return c.called("RemoveUnstarted %s %s", podID, id)
}

func (c *core) StartContainer(_ context.Context, id string) error { return c.called("Start %s", id) }

func (c *core) WaitContainer(_ context.Context, id string, _ *uint32) (state.ContainerStatus, error) {
	return state.ContainerStatus{ExitCode: 3, Reason: "Error", Message: "why"}, c.called("Wait %s", id)
}

func (c *core) ExitOf(id string) func(context.Context) (state.ContainerStatus, error) {
	return func(context.Context) (state.ContainerStatus, error) {
		return state.ContainerStatus{ExitCode: 3, Reason: "Error"}, c.called("Exit %s", id)
	}
}

func (c *core) CheckExec(id string, cmd []string) error { return c.called("CheckExec %s", id) }

func (c *core) ExecAs(_ context.Context, id string, cmd []string, s stdio.Streams, _ api.ExecOptions) (int32, error) {
	if err := c.called("Exec %s %v tty=%t stdin=%t stdout=%t stderr=%t", id, cmd, s.TTY, s.Stdin != nil, s.Stdout != nil, s.Stderr != nil); err != nil {
		return 0, err
	}
	if s.Resize != nil {
		size := <-s.Resize
		_, _ = fmt.Fprintf(s.Stdout, "%dx%d ", size.Width, size.Height)
	}
	if s.Stdin != nil {
		_, _ = io.Copy(s.Stdout, s.Stdin)
	}
	return 7, nil
}

func (c *core) CheckAttach(id string, tty bool) error { return c.called("CheckAttach %s", id) }

func (c *core) Attach(ctx context.Context, id string, s stdio.Streams) error {
	if err := c.called("Attach %s", id); err != nil {
		return err
	}
	s.Attached()
	if s.Stdin == nil { // until the client is gone
		<-ctx.Done()
		return c.called("Detached %s", id)
	}
	_, err := io.Copy(s.Stdout, s.Stdin)
	return err
}

func (c *core) PortForward(_ context.Context, podID string, port int32, client io.ReadWriteCloser) error {
	if err := c.called("PortForward %s %d", podID, port); err != nil {
		return err
	}
	if _, err := io.Copy(client, client); err != nil {
		return err
	}
	return client.Close()
}

func (c *core) Signal(_ context.Context, id string, sig syscall.Signal) error {
	return c.called("Signal %s %d", id, sig)
}

func (c *core) Processes(id string) ([]stats.Process, error) {
	return []stats.Process{{PID: 1, Node: 40, UID: 5, Command: "init"}}, c.called("Processes %s", id)
}

func serve(t *testing.T, c *core) *grpc.ClientConn {
	t.Helper()
	l, server := bufconn.Listen(1<<16), grpc.NewServer()
	control.Register(server, control.Dependencies{Containers: c, Sessions: c})
	go func() { _ = server.Serve(l) }()
	t.Cleanup(server.Stop)
	conn, err := grpc.NewClient("passthrough:///pipe", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func run(t *testing.T, detach bool) api.SessionRequest {
	t.Helper()
	pod, err := proto.Marshal(&runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Name: "pod"}})
	if err != nil {
		t.Fatal(err)
	}
	ctr, err := proto.Marshal(&runtimeapi.ContainerConfig{Metadata: &runtimeapi.ContainerMetadata{Name: "ctr"}})
	if err != nil {
		t.Fatal(err)
	}
	return api.SessionRequest{Kind: api.SessionRun, Run: &api.RunRequest{Pod: pod, Container: ctr, Handler: "runc", Detach: detach}}
}

func inPod(r api.SessionRequest, id string) api.SessionRequest {
	r.Run.PodID = id
	return r
}

// TestSessions: which calls of the core a session becomes, and what its client gets.
func TestSessions(t *testing.T) {
	failed := errors.New("failed")
	for name, c := range map[string]struct {
		req    api.SessionRequest
		input  string
		fail   string // the call that fails
		calls  string
		output string
		code   int32
	}{
		"exec": {
			req: api.SessionRequest{Kind: api.SessionExec, ContainerID: "c1", Command: []string{"cat"}}, input: "in",
			calls: "CheckExec c1, Exec c1 [cat] tty=false stdin=true stdout=true stderr=true", output: "in", code: 7,
		},
		"exec, refused": {
			req: api.SessionRequest{Kind: api.SessionExec, ContainerID: "c1"}, fail: "CheckExec", calls: "CheckExec c1",
		},
		"attach": {
			req: api.SessionRequest{Kind: api.SessionAttach, ContainerID: "c1"}, input: "in",
			calls: "CheckAttach c1, Attach c1", output: "in",
		},
		"attach, start and wait": {
			req: api.SessionRequest{Kind: api.SessionAttach, ContainerID: "c1", Start: true, Wait: true}, input: "in",
			calls: "CheckAttach c1, Attach c1, Start c1, Exit c1", output: "in", code: 3,
		},
		"attach, refused, with a start that works": {
			req: api.SessionRequest{Kind: api.SessionAttach, ContainerID: "c1", Start: true}, fail: "CheckAttach",
			calls: "CheckAttach c1, Start c1",
		},
		"attach, start fails": {
			req: api.SessionRequest{Kind: api.SessionAttach, ContainerID: "c1", Start: true}, fail: "Start",
			calls: "CheckAttach c1, Attach c1, Start c1, Detached c1",
		},
		"run": {
			req: run(t, false), input: "in",
			calls: "RunPodWith pod runc ctr, CheckAttach c1, Attach c1, Start c1, Exit c1", output: "in", code: 3,
		},
		"run detached": {
			req: run(t, true), calls: "RunPodWith pod runc ctr, Start c1",
		},
		"run in a pod": {
			req: inPod(run(t, true), "p9"), calls: "CreateContainer p9 ctr, Start c1",
		},
		"run in a pod, start fails": {
			req: inPod(run(t, true), "p9"), fail: "Start", calls: "CreateContainer p9 ctr, Start c1, RemoveContainer c1",
		},
		"exec detached": {
			req:   api.SessionRequest{Kind: api.SessionExec, ContainerID: "c1", Command: []string{"x"}, Exec: &api.ExecOptions{Detach: true, Dir: "/d"}},
			calls: "CheckExec c1, ExecDetached c1 [x] tty=false {Env:[] User: Dir:/d Privileged:false Detach:true}",
		},
		"run, creation fails": {
			req: run(t, true), fail: "RunPodWith", calls: "RunPodWith pod runc ctr",
		},
		"run detached, start fails": {
			req: run(t, true), fail: "Start", calls: "RunPodWith pod runc ctr, Start c1, RemoveUnstarted p1 c1",
		},
		"run, start fails": {
			req: run(t, false), fail: "Start",
			calls: "RunPodWith pod runc ctr, CheckAttach c1, Attach c1, Start c1, Detached c1, RemoveUnstarted p1 c1",
		},
		"run, attach fails": {
			req: run(t, false), fail: "Attach", input: "in",
			calls: "RunPodWith pod runc ctr, CheckAttach c1, Attach c1, RemoveUnstarted p1 c1",
		},
		"port-forward": {
			req: api.SessionRequest{Kind: api.SessionPortForward, PodID: "p1", Port: 80}, input: "in",
			calls: "PortForward p1 80", output: "in",
		},
		"without its configuration": {req: api.SessionRequest{Kind: api.SessionRun}, fail: "-"},
		"unknown":                   {req: api.SessionRequest{Kind: "other"}, fail: "-"},
	} {
		t.Run(name, func(t *testing.T) {
			core := newCore()
			if c.fail != "" {
				core.fail[c.fail] = failed
			}
			var out bytes.Buffer
			streams := api.Streams{Output: &out, Errors: io.Discard}
			if c.input != "" {
				streams.Input = strings.NewReader(c.input)
			}
			exit, err := api.Session(t.Context(), serve(t, core), c.req, streams)
			if (err != nil) != (c.fail != "") {
				t.Errorf("the session returned %v", err)
			}
			if err == nil && exit.Code != c.code {
				t.Errorf("exit code %d, want %d", exit.Code, c.code)
			}
			if core.String() != c.calls {
				t.Errorf("calls %s\nwant  %s", core, c.calls)
			}
			if out.String() != c.output {
				t.Errorf("output %q, want %q", out.String(), c.output)
			}
		})
	}
}

// TestTerminal: a terminal has no stderr of its own, and gets its size.
func TestTerminal(t *testing.T) {
	core := newCore()
	sizes := make(chan stdio.TerminalSize, 1)
	sizes <- stdio.TerminalSize{Width: 80, Height: 24}
	var out bytes.Buffer
	_, err := api.Session(t.Context(), serve(t, core), api.SessionRequest{Kind: api.SessionExec, ContainerID: "c1", TTY: true}, api.Streams{Output: &out, Sizes: sizes})
	if err != nil || out.String() != "80x24 " {
		t.Errorf("output %q, %v", out.String(), err)
	}
	if want := "CheckExec c1, Exec c1 [] tty=true stdin=false stdout=true stderr=false"; core.String() != want {
		t.Errorf("calls %s, want %s", core, want)
	}
}

// TestClientGone: a session whose client ends is detached, and the container is neither
// waited for nor removed.
func TestClientGone(t *testing.T) {
	core := newCore()
	ctx, cancel := context.WithCancel(t.Context())
	made := make(chan api.Made, 1)
	done := make(chan error, 1)
	conn := serve(t, core)
	go func() {
		_, err := api.Session(ctx, conn, run(t, false), api.Streams{Output: io.Discard, Errors: io.Discard, Made: func(m api.Made) { made <- m }})
		done <- err
	}()
	if m := <-made; m.PodID != "p1" || m.ContainerID != "c1" {
		t.Errorf("made %+v", m)
	}
	for !strings.Contains(core.String(), "Start c1") {
		time.Sleep(time.Millisecond)
	}
	cancel()
	if err := <-done; err == nil {
		t.Error("the session of a client that is gone returned no error")
	}
	for !strings.Contains(core.String(), "Detached c1") {
		time.Sleep(time.Millisecond)
	}
}

func TestContainerCalls(t *testing.T) {
	core := newCore()
	conn := serve(t, core)
	wait, err := api.Call[api.WaitResponse](t.Context(), conn, "Wait", &api.WaitRequest{ContainerID: "c1"})
	if err != nil || *wait != (api.WaitResponse{ExitCode: 3, Reason: "Error", Message: "why"}) {
		t.Errorf("Wait: %+v, %v", wait, err)
	}
	if _, err := api.Call[api.Empty](t.Context(), conn, "Signal", &api.SignalRequest{ContainerID: "c1", Signal: 10}); err != nil {
		t.Error(err)
	}
	top, err := api.Call[api.TopResponse](t.Context(), conn, "Top", &api.TopRequest{ContainerID: "c1"})
	if err != nil || len(top.Processes) != 1 || top.Processes[0].NodePID != 40 || top.Processes[0].Command != "init" {
		t.Errorf("Top: %+v, %v", top, err)
	}
	if want := "Wait c1, Signal c1 10, Processes c1"; core.String() != want {
		t.Errorf("calls %s, want %s", core, want)
	}
	core.fail["Processes"] = errors.New("gone")
	if _, err := api.Call[api.TopResponse](t.Context(), conn, "Top", &api.TopRequest{ContainerID: "c1"}); err == nil {
		t.Error("an error of the core is lost")
	}
	if _, err := api.Call[api.LoadResponse](t.Context(), conn, "Load", &api.LoadRequest{}); err == nil {
		t.Error("a load without a source is accepted")
	}
}
