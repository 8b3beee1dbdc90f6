package pod

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/netns"
	"github.com/subpod/subpod/pkg/oci"
	"github.com/subpod/subpod/pkg/ocispec"
	"github.com/subpod/subpod/pkg/state"
	"github.com/subpod/subpod/pkg/stdio"
	"github.com/subpod/subpod/pkg/stream"
)

// ExecSync runs cmd in a running container and returns its output; timeout 0
// means no limit. ErrWrongState, oci.ErrTimeout.
func (r *Runtime) ExecSync(ctx context.Context, id string, cmd []string, timeout time.Duration) (oci.ExecResult, error) {
	c, err := r.running(id)
	if err != nil {
		return oci.ExecResult{}, err
	}
	process, err := r.execProcess(c, cmd, false)
	if err != nil {
		return oci.ExecResult{}, err
	}
	return r.Executor.ExecSync(ctx, c.ID, *c.Allocated.Runtime, oci.ExecSpec{Process: process, Timeout: timeout})
}

// Exec runs cmd in a running container, joined to the streams, and returns its
// exit code.
func (r *Runtime) Exec(ctx context.Context, id string, cmd []string, s stdio.Streams) (int32, error) {
	c, err := r.running(id)
	if err != nil {
		return 0, err
	}
	process, err := r.execProcess(c, cmd, s.TTY)
	if err != nil {
		return 0, err
	}
	return r.Executor.Exec(ctx, c.ID, *c.Allocated.Runtime, process, s)
}

// Attach joins the streams to the container's own process until either ends.
// Attached before the start, a client misses nothing.
func (r *Runtime) Attach(ctx context.Context, id string, s stdio.Streams) error {
	c, err := r.attachable(id)
	if err != nil {
		return err
	}
	return r.Executor.Attach(ctx, c.ID, *c.Allocated.Runtime, s)
}

// PortForward joins the client to a port on the pod's loopback. A pod on the
// node's network is reached on the node's loopback.
func (r *Runtime) PortForward(ctx context.Context, podID string, port int32, client io.ReadWriteCloser) error {
	p, err := r.readyPod(podID)
	if err != nil {
		return err
	}
	ns := p.Allocated.Pins.Net
	if ns == "" {
		ns = r.NodeNetNS
	}
	conn, err := netns.DialIn(ctx, ns, "tcp", fmt.Sprintf("localhost:%d", port))
	if err != nil {
		return fmt.Errorf("forward to port %d of pod sandbox %s: %w", port, p.ID, err)
	}
	return stream.Forward(ctx, client, conn)
}

// CheckExec says whether a stream to the container can be opened now.
func (r *Runtime) CheckExec(id string, cmd []string) error {
	if len(cmd) == 0 {
		return fmt.Errorf("%w: exec in container %s: no command", ErrInvalid, id)
	}
	_, err := r.running(id)
	return err
}

// CheckAttach says whether a client can attach to the container now; tty must
// be as the container was made (proto: AttachRequest.tty).
func (r *Runtime) CheckAttach(id string, tty bool) error {
	c, err := r.attachable(id)
	if err != nil {
		return err
	}
	if c.Config.V.Tty != tty {
		return fmt.Errorf("%w: attach to container %s with tty=%t: it was made with tty=%t", ErrInvalid, c.ID, tty, c.Config.V.Tty)
	}
	return nil
}

// CheckPortForward says whether ports of the pod sandbox can be forwarded now.
func (r *Runtime) CheckPortForward(podID string) error {
	_, err := r.readyPod(podID)
	return err
}

// ReopenLog makes the container write to a new log file, after the old one was
// renamed. ErrWrongState when it does not run.
func (r *Runtime) ReopenLog(ctx context.Context, id string) error {
	c, err := r.running(id)
	if err != nil {
		return err
	}
	return r.Executor.ReopenLog(ctx, c.ID, *c.Allocated.Runtime)
}

func (r *Runtime) running(id string) (state.Container, error) {
	c, err := r.State.Container(id)
	if err != nil {
		return c, err
	}
	if c.State() != runtimeapi.ContainerState_CONTAINER_RUNNING {
		return c, fmt.Errorf("%w: container %s is not running, it is %s", ErrWrongState, c.ID, c.StateWord())
	}
	return c, nil
}

// attachable returns a container that runs, or waits to be started.
func (r *Runtime) attachable(id string) (state.Container, error) {
	c, err := r.State.Container(id)
	if err != nil {
		return c, err
	}
	if c.State() == runtimeapi.ContainerState_CONTAINER_CREATED && c.Allocated.Runtime != nil {
		return c, nil
	}
	return r.running(c.ID)
}

func (r *Runtime) readyPod(id string) (state.Pod, error) {
	p, err := r.State.Pod(id)
	if err != nil {
		return p, err
	}
	if p.Status.Phase != state.PodReady {
		return p, fmt.Errorf("%w: pod sandbox %s is not ready", ErrWrongState, p.ID)
	}
	return p, nil
}

func (r *Runtime) execProcess(c state.Container, cmd []string, tty bool) (*specs.Process, error) {
	if len(cmd) == 0 {
		return nil, fmt.Errorf("%w: exec in container %s: no command", ErrInvalid, c.ID)
	}
	text, err := os.ReadFile(filepath.Join(c.Allocated.Runtime.Bundle, "config.json"))
	if err != nil {
		return nil, fmt.Errorf("read the spec of container %s: %w", c.ID, err)
	}
	// Only the process is of interest: the rest is large.
	var spec struct {
		Process *specs.Process `json:"process"`
	}
	if err := json.Unmarshal(text, &spec); err != nil {
		return nil, fmt.Errorf("read the spec of container %s: %w", c.ID, err)
	}
	return ocispec.ExecProcess(&specs.Spec{Process: spec.Process}, cmd, tty), nil
}
