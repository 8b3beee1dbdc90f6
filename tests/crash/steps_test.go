package crash

import (
	"context"
	"fmt"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/tests/inject"
	"github.com/subpod/subpod/tests/leak"
	"github.com/subpod/subpod/tests/node"
)

// operation is one row of the table: a request, what goes before it, and what must
// be true when it has been repeated after a fault.
type operation struct {
	name   string
	before func(*pod, context.Context) error
	do     func(*pod, context.Context) error
	after  func(*pod, context.Context) error
}

const (
	created = runtimeapi.ContainerState_CONTAINER_CREATED
	running = runtimeapi.ContainerState_CONTAINER_RUNNING
	exited  = runtimeapi.ContainerState_CONTAINER_EXITED
)

// pulled is an image that only the tests of pulling and removing use.
const pulled = "registry.k8s.io/pause:3.9"

var operations = []operation{
	{"RunPodSandbox", nothing, (*pod).run, func(p *pod, ctx context.Context) error {
		resp, err := p.r.cri.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.podID})
		if err != nil || resp.Status.State != runtimeapi.PodSandboxState_SANDBOX_READY || resp.Status.GetNetwork().GetIp() == "" {
			return fmt.Errorf("the pod sandbox is %v, %w", resp, err)
		}
		return works(ctx, p)
	}},
	{"CreateContainer", (*pod).run, (*pod).create, func(p *pod, ctx context.Context) error {
		if err := p.isState(ctx, created); err != nil {
			return err
		}
		if err := p.start(ctx); err != nil {
			return err
		}
		_, err := p.exec(ctx, "true")
		return err
	}},
	{"StartContainer", upTo((*pod).run, (*pod).create), startedOrTold, func(p *pod, ctx context.Context) error {
		s, err := p.status(ctx)
		if err == nil && s.State == exited && s.Reason == "StartError" {
			return nil // a start that failed, and was told
		}
		if err == nil && s.State != running {
			err = fmt.Errorf("the container is %s (%s)", s.State, s.Reason)
		}
		if err == nil {
			_, err = p.exec(ctx, "true")
		}
		return err
	}},
	{"StopContainer", (*pod).up, (*pod).stop, func(p *pod, ctx context.Context) error { return p.isState(ctx, exited) }},
	{"RemoveContainer", (*pod).up, (*pod).remove, func(p *pod, ctx context.Context) error {
		if _, err := p.status(ctx); status.Code(err) != codes.NotFound {
			return fmt.Errorf("the status of a removed container: %v", err)
		}
		p.container.Metadata.Attempt++
		return works(ctx, p)
	}},
	{"StopPodSandbox", (*pod).up, (*pod).stopPod, func(p *pod, ctx context.Context) error { return p.isState(ctx, exited) }},
	{"RemovePodSandbox", (*pod).up, (*pod).removePod, func(p *pod, ctx context.Context) error { return p.gone(ctx) }},
	{"Run", nothing, (*pod).runAtOnce, func(p *pod, ctx context.Context) error {
		if err := p.isState(ctx, running); err != nil {
			return err
		}
		_, err := p.exec(ctx, "true")
		return err
	}},
	{"EndOfRun", (*pod).runAtOnce, (*pod).end, nothing},
	{"PullImage", func(p *pod, ctx context.Context) error { return p.r.removeImage(ctx, pulled) },
		func(p *pod, ctx context.Context) error { return p.r.pull(ctx, pulled) },
		func(p *pod, ctx context.Context) error {
			p.container.Image.Image, p.container.Command = pulled, nil
			return p.up(ctx)
		}},
	{"RemoveImage", func(p *pod, ctx context.Context) error { return p.r.pull(ctx, pulled) },
		func(p *pod, ctx context.Context) error { return p.r.removeImage(ctx, pulled) },
		func(p *pod, ctx context.Context) error {
			has, err := p.r.hasImage(ctx, pulled)
			if err == nil && has {
				err = fmt.Errorf("the removed image is there")
			}
			return err
		}},
}

func nothing(*pod, context.Context) error { return nil }

func upTo(steps ...func(*pod, context.Context) error) func(*pod, context.Context) error {
	return func(p *pod, ctx context.Context) error {
		for _, step := range steps {
			if err := step(p, ctx); err != nil {
				return err
			}
		}
		return nil
	}
}

// startedOrTold is StartContainer as the kubelet sees it: a container that runs
// already, or has told why it cannot, is not started again.
func startedOrTold(p *pod, ctx context.Context) error {
	err := p.start(ctx)
	if status.Code(err) != codes.FailedPrecondition {
		return err
	}
	s, statusErr := p.status(ctx)
	if statusErr == nil && (s.State == running || s.State == exited && s.Reason == "StartError") {
		return nil
	}
	return err
}

// works brings a container of the pod up and runs a command in it.
func works(ctx context.Context, p *pod) error {
	if err := p.create(ctx); err != nil {
		return err
	}
	if err := p.start(ctx); err != nil {
		return err
	}
	_, err := p.exec(ctx, "true")
	return err
}

// TestKillAtEveryStep kills the server at system calls of every request.
func TestKillAtEveryStep(t *testing.T) { everyStep(t, inject.Kill, 9) }

// TestErrorAtEveryStep lets system calls of every request fail: a full disk, a
// device error, no memory.
func TestErrorAtEveryStep(t *testing.T) { everyStep(t, inject.Fail, 11) }

// everyStep breaks each operation at its first, second, … call with an effect,
// until there are no more; with -short at a few of them.
func everyStep(t *testing.T, action inject.Action, stride int) {
	if !inject.Supported {
		t.Skip("the registers of this architecture are not known to tests/inject")
	}
	r := newRig(t, node.Options{Config: "[daemon]\nlog_level = \"debug\"\n"})
	_, err := r.Subpod("run", "--rm", "busybox", "true") // and the name server with it
	r.must("warm up", err)
	before := r.warm()
	if !testing.Short() {
		stride = 1
	}
	var faults int
	var slowest time.Duration
	for _, op := range operations {
		t.Run(op.name, func(t *testing.T) {
			for at := 1; at < 2000; at += stride {
				f := fault{r: r, t: t, op: op, plan: inject.Plan{At: at, Action: action}}
				hit, took := f.run(before)
				if hit == "" {
					t.Logf("%s: %d steps", op.name, at-1)
					break
				}
				t.Logf("step %d at %q: back after %v", at, hit, took.Round(time.Millisecond))
				faults++
				slowest = max(slowest, took)
				if t.Failed() {
					break
				}
			}
		})
	}
	t.Logf("%d faults, slowest return to work %v", faults, slowest.Round(time.Millisecond))
}

// fault is one cell of the table.
type fault struct {
	r    *rig
	t    *testing.T
	op   operation
	plan inject.Plan
}

func (f fault) fatal(hit, format string, args ...any) {
	f.t.Helper()
	f.t.Fatalf("%s, step %d %s at %q: %s", f.op.name, f.plan.At, f.plan.Action, hit, fmt.Sprintf(format, args...))
}

// run returns the call that was broken, "" when the operation has fewer, and how
// long it took until the request was answered well.
func (f fault) run(before leak.Snapshot) (hit string, took time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	port := freePort(f.t)
	p := f.r.newPod(sleeper, port)
	defer func() {
		if p.podID != "" && f.t.Failed() {
			_, _ = again(p.removePod) // the next row starts from nothing
		}
	}()
	if err := f.op.before(p, ctx); err != nil {
		f.fatal("", "before it: %v", err)
	}
	injection, err := inject.Attach(f.r.Server(), f.plan)
	if err != nil {
		f.fatal("", "%v", err)
	}
	firstErr := f.op.do(p, ctx)
	report, err := injection.Stop()
	if err != nil {
		f.fatal(report.Hit, "%v", err)
	}
	took, err = again(func(ctx context.Context) error { return f.op.do(p, ctx) })
	if err != nil {
		// The server's goroutines say what it waits for.
		_ = syscall.Kill(f.r.Server(), syscall.SIGQUIT)
		time.Sleep(time.Second)
		f.t.Logf("the daemon's log, with the server's goroutines:\n%s", f.r.Log())
		f.fatal(report.Hit, "the first answer was: %v; after %v: %v", firstErr, took, err)
	}
	if err := f.op.after(p, ctx); err != nil {
		f.fatal(report.Hit, "the first answer was: %v; it is done, but: %v", firstErr, err)
	}
	if p.podID != "" {
		if _, err := again(func(ctx context.Context) error { return p.removePod(ctx) }); err != nil {
			f.fatal(report.Hit, "remove: %v", err)
		}
	}
	if err := p.gone(ctx); err != nil {
		f.fatal(report.Hit, "after its removal: %v", err)
	}
	if err := f.r.pull(ctx, pulled); err != nil {
		f.fatal(report.Hit, "pull again: %v", err)
	}
	if err := f.r.settled(before); err != nil {
		f.fatal(report.Hit, "the first answer was: %v; %v", firstErr, err)
	}
	if l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err != nil {
		f.fatal(report.Hit, "the host port of the removed pod: %v", err)
	} else {
		l.Close()
	}
	return strings.TrimSpace(report.Hit), took
}
