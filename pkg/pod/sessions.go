package pod

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"syscall"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/containerd/errdefs"

	"github.com/subpod/subpod/netns"
	"github.com/subpod/subpod/pkg/api"
	"github.com/subpod/subpod/pkg/oci"
	"github.com/subpod/subpod/pkg/pod/container"
	"github.com/subpod/subpod/pkg/state"
	"github.com/subpod/subpod/pkg/stats"
	"github.com/subpod/subpod/pkg/stdio"
)

// Sessions joins clients to running containers and ready pod sandboxes: exec, attach,
// port-forward, signals, logs. It holds no lock and changes no record.
type Sessions struct {
	State    *state.Store
	Executor *oci.Executor
	// NodeNetNS is the path of the node network namespace, for pods without one of
	// their own.
	NodeNetNS string
	// Bounding are the capabilities that a privileged exec gets.
	Bounding []string
}

// ExecSync runs cmd in a running container and returns its output; timeout 0
// means no limit. errdefs.ErrFailedPrecondition, oci.ErrTimeout.
func (s *Sessions) ExecSync(ctx context.Context, id string, cmd []string, timeout time.Duration) (oci.ExecResult, error) {
	return s.execSync(ctx, id, cmd, oci.ExecSpec{Timeout: timeout})
}

// probeOutput is how many bytes of each stream of a probe are kept: there may be one in
// every container at a time, and the containers write as they like.
const probeOutput = 4096

// Probe is ExecSync for what the server itself runs in containers now and then: probes,
// hooks and health checks. It keeps the beginning of the output.
func (s *Sessions) Probe(ctx context.Context, id string, cmd []string, timeout time.Duration) (oci.ExecResult, error) {
	return s.execSync(ctx, id, cmd, oci.ExecSpec{Timeout: timeout, MaxOutput: probeOutput})
}

func (s *Sessions) execSync(ctx context.Context, id string, cmd []string, spec oci.ExecSpec) (oci.ExecResult, error) {
	c, err := s.running(id)
	if err != nil {
		return oci.ExecResult{}, err
	}
	if spec.Process, err = container.ExecProcess(c, cmd, false); err != nil {
		return oci.ExecResult{}, err
	}
	return s.Executor.ExecSync(ctx, c.ID, *c.Allocated.Runtime, spec)
}

// Exec runs cmd in a running container, joined to the streams, and returns its
// exit code.
func (s *Sessions) Exec(ctx context.Context, id string, cmd []string, streams stdio.Streams) (int32, error) {
	return s.ExecAs(ctx, id, cmd, streams, api.ExecOptions{})
}

// ExecAs is Exec with another process than the container's own has.
// errdefs.ErrInvalidArgument.
func (s *Sessions) ExecAs(ctx context.Context, id string, cmd []string, streams stdio.Streams, options api.ExecOptions) (int32, error) {
	c, err := s.running(id)
	if err != nil {
		return 0, err
	}
	process, err := container.ExecProcess(c, cmd, streams.TTY)
	if err != nil {
		return 0, err
	}
	if err := container.ChangeProcess(c, process, options, s.Bounding); err != nil {
		return 0, err
	}
	return s.Executor.Exec(ctx, c.ID, *c.Allocated.Runtime, process, streams)
}

// ExecDetached starts cmd in a running container and leaves it alone once it is executed;
// what it writes goes nowhere. The process ends with its container, and the error of one
// that cannot be started is returned.
func (s *Sessions) ExecDetached(ctx context.Context, id string, cmd []string, tty bool, options api.ExecOptions) error {
	ended, begun := make(chan error, 1), make(chan struct{})
	streams := stdio.Streams{TTY: tty, Stdout: discard{}, Begun: func() { close(begun) }}
	if !tty {
		streams.Stderr = discard{}
	}
	go func() {
		_, err := s.ExecAs(context.WithoutCancel(ctx), id, cmd, streams, options)
		ended <- err
	}()
	select {
	case err := <-ended:
		return err
	case <-begun:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// discard is an output that nobody reads.
type discard struct{}

// Write implements io.Writer.
func (discard) Write(p []byte) (int, error) { return len(p), nil }

// Close implements io.Closer.
func (discard) Close() error { return nil }

// Attach joins the streams to the container's own process until either ends.
// Attached before the start, a client misses nothing.
func (s *Sessions) Attach(ctx context.Context, id string, streams stdio.Streams) error {
	c, err := s.attachable(id)
	if err != nil {
		return err
	}
	return s.Executor.Attach(ctx, c.ID, *c.Allocated.Runtime, streams)
}

// PortForward joins the client to a port on the pod's loopback. A pod on the
// node's network is reached on the node's loopback.
func (s *Sessions) PortForward(ctx context.Context, podID string, port int32, client io.ReadWriteCloser) error {
	p, err := s.readyPod(podID)
	if err != nil {
		return err
	}
	ns := p.Allocated.Pins.Net
	if ns == "" {
		ns = s.NodeNetNS
	}
	conn, err := netns.DialIn(ctx, ns, "tcp", fmt.Sprintf("localhost:%d", port))
	if err != nil {
		return fmt.Errorf("forward to port %d of pod sandbox %s: %w", port, p.ID, err)
	}
	return netns.Forward(ctx, client, conn)
}

// Dial connects to a port of a ready pod sandbox from within its network: on host, or else
// on its address or its loopback.
func (s *Sessions) Dial(ctx context.Context, podID, host string, port int32) (net.Conn, error) {
	p, err := s.readyPod(podID)
	if err != nil {
		return nil, err
	}
	ns := p.Allocated.Pins.Net
	if ns == "" {
		ns = s.NodeNetNS
	}
	hosts := []string{host}
	if host == "" {
		hosts = nil
		for _, ip := range p.IPs() {
			hosts = append(hosts, ip.String())
		}
		hosts = append(hosts, "localhost")
	}
	var errs []error
	for _, host := range hosts {
		conn, err := netns.DialIn(ctx, ns, "tcp", net.JoinHostPort(host, strconv.Itoa(int(port))))
		if err == nil {
			return conn, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(errs...)
}

// CheckExec reports whether a stream to the container can be opened now.
func (s *Sessions) CheckExec(id string, cmd []string) error {
	if len(cmd) == 0 {
		return fmt.Errorf("%w: exec in container %s: no command", errdefs.ErrInvalidArgument, id)
	}
	_, err := s.running(id)
	return err
}

// CheckAttach reports whether a client can attach to the container now; tty must
// be as the container was made (proto: AttachRequest.tty).
func (s *Sessions) CheckAttach(id string, tty bool) error {
	c, err := s.attachable(id)
	if err != nil {
		return err
	}
	if c.Config.V.Tty != tty {
		return fmt.Errorf("%w: attach to container %s with tty=%t: it was made with tty=%t", errdefs.ErrInvalidArgument, c.ID, tty, c.Config.V.Tty)
	}
	return nil
}

// CheckPortForward reports whether ports of the pod sandbox can be forwarded now.
func (s *Sessions) CheckPortForward(podID string) error {
	_, err := s.readyPod(podID)
	return err
}

// ReopenLog makes the container write to a new log file, after the old one was
// renamed. errdefs.ErrFailedPrecondition when it does not run.
func (s *Sessions) ReopenLog(ctx context.Context, id string) error {
	c, err := s.running(id)
	if err != nil {
		return err
	}
	return s.Executor.ReopenLog(ctx, c.ID, *c.Allocated.Runtime)
}

// Signal sends a signal to the container's first process.
// errdefs.ErrFailedPrecondition when it does not run, errdefs.ErrInvalidArgument for
// a signal that there is not.
func (s *Sessions) Signal(ctx context.Context, id string, sig syscall.Signal) error {
	if sig < 1 || sig > 64 {
		return fmt.Errorf("%w: there is no signal %d", errdefs.ErrInvalidArgument, sig)
	}
	c, err := s.running(id)
	if err != nil {
		return err
	}
	if err := s.Executor.Signal(ctx, c.ID, *c.Allocated.Runtime, sig, false); err != nil {
		return fmt.Errorf("send signal %d to container %s: %w", sig, c.ID, err)
	}
	return nil
}

// Processes lists the processes of a running container.
// errdefs.ErrFailedPrecondition.
func (s *Sessions) Processes(id string) ([]stats.Process, error) {
	c, err := s.running(id)
	if err != nil {
		return nil, err
	}
	return stats.Processes(c.Allocated.Runtime.Init), nil
}

func (s *Sessions) running(id string) (state.Container, error) {
	c, err := s.State.FindContainer(id)
	if err != nil {
		return c, err
	}
	if c.State() != runtimeapi.ContainerState_CONTAINER_RUNNING || c.Allocated.Runtime == nil {
		return c, wrongState("container %s is not running, it is %s", c.ID, c.StateWord())
	}
	return c, nil
}

// attachable returns a container that runs, or waits to be started.
func (s *Sessions) attachable(id string) (state.Container, error) {
	c, err := s.State.FindContainer(id)
	if err != nil {
		return c, err
	}
	if c.State() == runtimeapi.ContainerState_CONTAINER_CREATED && c.Allocated.Runtime != nil {
		return c, nil
	}
	return s.running(c.ID)
}

func (s *Sessions) readyPod(id string) (state.Pod, error) {
	p, err := s.State.FindPod(id)
	if err != nil {
		return p, err
	}
	if p.Status.Phase != state.PodReady {
		return p, wrongState("pod sandbox %s is not ready", p.ID)
	}
	return p, nil
}
