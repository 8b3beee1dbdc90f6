package play

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/cmd/internal/kube"
	"github.com/subpod/subpod/pkg/api"
	"github.com/subpod/subpod/pkg/client"
)

// watcher probes one running container.
type watcher struct {
	*runner
	container *kube.Container
	id        string
}

// watch runs the hooks and probes of the container until ctx ends: first the startup
// probe, then the others concurrently. A container whose startup or liveness probe
// fails is stopped. up is called once it is started and ready.
func (w *watcher) watch(ctx context.Context, up func()) {
	c := w.container
	if l := c.Lifecycle; l != nil && l.PostStart != nil {
		if err := hook(ctx, w.Client, w.id, l.PostStart); err != nil && ctx.Err() == nil {
			w.kill(ctx, fmt.Sprintf("postStart: %v", err))
			return
		}
	}
	if p := c.StartupProbe; p != nil {
		if ok := w.until(ctx, p, true); !ok {
			if ctx.Err() == nil {
				w.kill(ctx, "startup probe failed")
			}
			return
		}
	}
	ready := make(chan struct{})
	go func() {
		defer close(ready)
		if p := c.ReadinessProbe; p != nil {
			w.readiness(ctx, p, up)
			return
		}
		up()
	}()
	if p := c.LivenessProbe; p != nil {
		if failed := w.until(ctx, p, false); failed {
			w.kill(ctx, "liveness probe failed")
		}
	}
	<-ready
}

// until probes until the wanted result has come often enough in a row, and then
// returns true. It returns false when ctx ends or, if success is wanted, when the
// probe has failed too often.
func (w *watcher) until(ctx context.Context, p *kube.Probe, success bool) bool {
	if !sleep(ctx, time.Duration(p.InitialDelaySeconds)*time.Second) {
		return false
	}
	var good, bad int32
	for {
		if err := w.probe(ctx, p); err == nil {
			good, bad = good+1, 0
		} else {
			good, bad = 0, bad+1
		}
		switch {
		case ctx.Err() != nil:
			return false
		case success && good >= p.Successes():
			return true
		case bad >= p.Failures():
			return !success
		}
		if !sleep(ctx, p.Period()) {
			return false
		}
	}
}

// readiness reports changes of the readiness of the container.
func (w *watcher) readiness(ctx context.Context, p *kube.Probe, up func()) {
	ready := false
	for ctx.Err() == nil {
		if w.until(ctx, p, !ready) {
			ready = !ready
			if ready {
				w.Report("%s: ready", w.title(w.container))
				up()
			} else {
				w.Report("%s: no longer ready", w.title(w.container))
			}
		}
		if !sleep(ctx, p.Period()) {
			return
		}
	}
}

func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}

// killMargin is the time that the stop of a container may take beyond its grace
// period.
const killMargin = 30 * time.Second

// kill stops the container; the restart policy decides what happens then.
func (w *watcher) kill(ctx context.Context, why string) {
	w.Report("%s: %s; stopping the container", w.title(w.container), why)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Duration(grace(w.pod))*time.Second+killMargin)
	defer cancel()
	if l := w.container.Lifecycle; l != nil && l.PreStop != nil {
		_ = hook(ctx, w.Client, w.id, l.PreStop)
	}
	if _, err := w.Client.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: w.id, Timeout: grace(w.pod)}); err != nil {
		w.Report("%s: %v", w.title(w.container), err)
	}
}

// hook runs a lifecycle hook.
func hook(ctx context.Context, c *client.Client, id string, h *kube.Hook) error {
	if h.Sleep != nil {
		sleep(ctx, time.Duration(h.Sleep.Seconds)*time.Second)
	}
	if h.Exec == nil {
		return nil
	}
	return execSync(ctx, c, id, h.Exec.Command, 0)
}

// execSync runs a command in a container; an exit code other than 0 is an error.
func execSync(ctx context.Context, c *client.Client, id string, command []string, timeout time.Duration) error {
	resp, err := c.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: command, Timeout: int64(timeout / time.Second)})
	if err != nil {
		return err
	}
	if resp.ExitCode != 0 {
		return fmt.Errorf("exit code %d", resp.ExitCode)
	}
	return nil
}

// probe runs the probe once.
func (w *watcher) probe(ctx context.Context, p *kube.Probe) error {
	ctx, cancel := context.WithTimeout(ctx, p.Timeout())
	defer cancel()
	switch {
	case p.Exec != nil:
		return execSync(ctx, w.Client, w.id, p.Exec.Command, p.Timeout())
	case p.TCPSocket != nil:
		conn, stop := w.dial(ctx, p.TCPSocket.Port.In(w.container))
		defer stop()
		return probeTCP(conn)
	}
	get := p.HTTPGet
	conn, stop := w.dial(ctx, get.Port.In(w.container))
	defer stop()
	if get.Scheme == "HTTPS" {
		conn = tls.Client(conn, &tls.Config{InsecureSkipVerify: true}) // as the kubelet's probe does
	}
	path := get.Path
	if path == "" || path[0] != '/' {
		path = "/" + path
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://localhost"+path, nil)
	if err != nil {
		return err
	}
	req.Header.Set("User-Agent", "subpod-probe")
	for _, h := range get.HTTPHeaders {
		req.Header.Set(h.Name, h.Value)
		if http.CanonicalHeaderKey(h.Name) == "Host" {
			req.Host = h.Value
		}
	}
	req.Close = true
	return probeHTTP(conn, req)
}

// tcpProbeWait is how long a forwarded connection must stay open for the port to
// count as open.
const tcpProbeWait = 100 * time.Millisecond

// probeTCP succeeds if the port is open: a forward to a closed port ends at once.
func probeTCP(conn net.Conn) error {
	_ = conn.SetReadDeadline(time.Now().Add(tcpProbeWait))
	_, err := conn.Read(make([]byte, 1))
	var timeout net.Error
	if err == nil || errors.As(err, &timeout) && timeout.Timeout() {
		return nil
	}
	return fmt.Errorf("the port is closed")
}

func probeHTTP(conn net.Conn, req *http.Request) error {
	if deadline, ok := req.Context().Deadline(); ok {
		_ = conn.SetDeadline(deadline)
	}
	if err := req.Write(conn); err != nil {
		return err
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, _ = io.CopyN(io.Discard, resp.Body, 10<<10)
	if resp.StatusCode < 200 || resp.StatusCode >= 400 {
		return errors.New("status " + strconv.Itoa(resp.StatusCode))
	}
	return nil
}

// dial connects to a port on the loopback of the pod through the daemon: the host
// cannot reach the addresses of pods.
func (w *watcher) dial(ctx context.Context, port int32) (net.Conn, func()) {
	here, there := net.Pipe()
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		defer there.Close()
		_, _ = w.Client.Session(ctx, api.SessionRequest{Kind: api.SessionPortForward, PodID: w.runner.id, Port: port},
			api.Streams{Input: there, Output: there})
	}()
	return here, func() {
		cancel()
		here.Close()
	}
}
