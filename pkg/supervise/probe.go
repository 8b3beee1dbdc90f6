package supervise

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
	"sync/atomic"
	"time"

	"github.com/subpod/subpod/pkg/state"
	"github.com/subpod/subpod/pkg/workload"
)

// watch runs the hook and the probes of one run of a container.
type watch struct {
	*unit
	container *workload.Container
	id        string
	startedAt time.Time
	grace     time.Duration
	hooked    bool // postStart was carried out, under another server
	cancel    context.CancelFunc

	up    atomic.Bool // hook and startup probe have succeeded
	ready atomic.Bool // and it was ready last
}

// watch begins to watch the containers that run and are not watched yet.
func (u *unit) watch(ctx context.Context, p state.Pod, containers []state.Container) {
	for i := range p.Workload.Containers {
		c := &p.Workload.Containers[i]
		rec := recordOf(p, containers, c.Name)
		if u.watches[c.Name] != nil || rec == nil || rec.Status.StartedAt.IsZero() || !rec.Status.FinishedAt.IsZero() ||
			c.PostStart == nil && c.Startup == nil && c.Readiness == nil && c.Liveness == nil {
			continue
		}
		ctx, cancel := context.WithCancel(ctx)
		w := &watch{
			unit: u, container: c, id: rec.ID, startedAt: rec.Status.StartedAt, grace: p.Workload.Grace, cancel: cancel,
			hooked: p.Supervision.Containers[c.Name].Hooked.Equal(rec.Status.StartedAt),
		}
		u.watches[c.Name] = w
		u.group.Go(func() { w.run(ctx) })
	}
}

// endWatches ends the watches of what does not run any more; of everything without s.
func (u *unit) endWatches(s *seen) {
	for name, w := range u.watches {
		if s != nil {
			if x := s.containers[name]; x.state == running && x.started.Equal(w.startedAt) {
				continue
			}
		}
		w.cancel()
		delete(u.watches, name)
	}
}

// run runs the hook, then the startup probe, then the others at the same time. A container
// whose startup or liveness probe fails is stopped: its policy says what follows.
func (w *watch) run(ctx context.Context) {
	c := w.container
	if c.PostStart != nil && !w.hooked {
		if err := w.hook(ctx, c.PostStart); err != nil {
			w.kill(ctx, fmt.Sprintf("postStart: %v", err))
			return
		}
		w.noteHook()
	}
	if c.Startup != nil && (!w.due(ctx, c.Startup) || !w.until(ctx, c.Startup, true)) {
		w.kill(ctx, "startup probe failed")
		return
	}
	if ctx.Err() != nil {
		return
	}
	w.up.Store(true)
	w.Kick(w.unit.id)
	if c.Readiness != nil {
		w.group.Go(func() { w.readiness(ctx, c.Readiness) })
	}
	if c.Liveness != nil && w.due(ctx, c.Liveness) && w.until(ctx, c.Liveness, false) {
		w.kill(ctx, "liveness probe failed")
	}
}

// noteHook records that the hook of this run was carried out: no other server does it again.
func (w *watch) noteHook() {
	_, err := w.Pods.Supervise(w.unit.id, func(p state.Pod) (workload.Status, bool) {
		progress := p.Supervision.Containers[w.container.Name]
		progress.Hooked = w.startedAt
		return p.Supervision.With(w.container.Name, progress), true
	})
	if err != nil && !errors.Is(err, state.ErrNotFound) {
		w.Log.Warn("a postStart hook could not be recorded; another server carries it out again", "container", w.id, "error", err)
	}
}

// due waits until a probe is due for the first time, which counts from the container's
// start: also under another server.
func (w *watch) due(ctx context.Context, p *workload.Probe) bool {
	return pause(ctx, min(p.Delay, w.startedAt.Add(p.Delay).Sub(w.now())))
}

// until probes until the wanted result has come often enough in a row, and then returns
// true. It returns false when ctx ends or, if success is wanted, when the probe has failed
// too often.
func (w *watch) until(ctx context.Context, p *workload.Probe, success bool) bool {
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
		case success && good >= p.Successes:
			return true
		case bad >= p.Failures:
			return !success
		}
		if !pause(ctx, p.Period) {
			return false
		}
	}
}

// readiness reports changes of the readiness of the container.
func (w *watch) readiness(ctx context.Context, p *workload.Probe) {
	for next := w.due(ctx, p); next; next = pause(ctx, p.Period) {
		ready := w.ready.Load()
		if w.until(ctx, p, !ready) {
			w.ready.Store(!ready)
			if ready {
				w.say("%s/%s: no longer ready", w.name, w.container.Name)
			} else {
				w.say("%s/%s: ready", w.name, w.container.Name)
			}
			w.Kick(w.unit.id)
		}
	}
}

func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}

// killMargin is the time that the stop of a container may take beyond its grace period.
const killMargin = 30 * time.Second

// kill ends the container, unless it has ended or is not to be watched any more.
func (w *watch) kill(ctx context.Context, why string) {
	if ctx.Err() != nil {
		return
	}
	w.say("%s/%s: %s; stopping the container", w.name, w.container.Name, why)
	// The watch ends before the container is restarted: the next run is not ended. Nor does
	// the end of the server wait; the next one probes again.
	bounded, cancel := context.WithTimeout(ctx, w.grace+killMargin)
	defer cancel()
	if w.container.PreStop != nil {
		hook, cancel := context.WithTimeout(bounded, w.grace)
		_ = w.hook(hook, w.container.PreStop)
		cancel()
	}
	if err := w.Pods.End(bounded, w.id, w.grace); err != nil && ctx.Err() == nil {
		w.Log.Warn("a container whose probe has failed could not be stopped", "container", w.id, "error", err)
		w.say("%s/%s: %v", w.name, w.container.Name, err)
	}
}

func (w *watch) hook(ctx context.Context, h *workload.Hook) error {
	return w.runHook(ctx, w.unit.id, w.id, h)
}

// PreStop runs the preStop hook of a container, if it has one: its user stops it.
func (s *Supervisor) PreStop(ctx context.Context, id string) error {
	c, err := s.Records.FindContainer(id)
	if err != nil {
		return err
	}
	p, err := s.Records.Pod(c.PodID)
	if err != nil || p.Workload == nil {
		return err
	}
	for _, x := range p.Workload.Containers {
		if x.PreStop != nil && x.Name == c.Config.V.GetMetadata().GetName() {
			return s.runHook(ctx, c.PodID, c.ID, x.PreStop)
		}
	}
	return nil
}

// hookTimeout bounds the answer to the request of a hook, beside the hook's own bounds.
const hookTimeout = time.Minute

func (s *Supervisor) runHook(ctx context.Context, podID, id string, h *workload.Hook) error {
	if h.Sleep > 0 {
		pause(ctx, h.Sleep)
	}
	if h.HTTP != nil {
		ctx, cancel := context.WithTimeout(ctx, hookTimeout)
		defer cancel()
		conn, err := s.Sessions.Dial(ctx, podID, h.HTTP.Host, h.HTTP.Port)
		if err != nil {
			return err
		}
		defer conn.Close()
		defer context.AfterFunc(ctx, func() { conn.Close() })()
		_, err = get(ctx, conn, h.HTTP)
		return err
	}
	if len(h.Command) == 0 {
		return nil
	}
	return execIn(ctx, s, id, h.Command, 0)
}

// execIn runs a command in a container; an exit code other than 0 is an error.
func execIn(ctx context.Context, s *Supervisor, id string, command []string, timeout time.Duration) error {
	result, err := s.Sessions.Probe(ctx, id, command, timeout)
	if err != nil {
		return err
	}
	if result.ExitCode != 0 {
		return fmt.Errorf("exit code %d", result.ExitCode)
	}
	return nil
}

// probe runs the probe once.
func (w *watch) probe(ctx context.Context, p *workload.Probe) error {
	ctx, cancel := context.WithTimeout(ctx, p.Timeout)
	defer cancel()
	if len(p.Command) > 0 {
		return execIn(ctx, w.Supervisor, w.id, p.Command, p.Timeout)
	}
	var at workload.Address
	switch {
	case p.HTTP != nil:
		at = p.HTTP.Address
	case p.GRPC != nil:
		at = p.GRPC.Address
	default:
		at = *p.TCP
	}
	conn, err := w.Sessions.Dial(ctx, w.unit.id, at.Host, at.Port)
	if err != nil {
		return err
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(deadline)
	}
	switch {
	case p.HTTP != nil:
		return succeeded(get(ctx, conn, p.HTTP))
	case p.GRPC != nil:
		return w.Health(ctx, conn, p.GRPC.Service)
	}
	return nil // the port is open
}

// succeeded returns an error for an answer that is no success of a probe.
func succeeded(status int, err error) error {
	if err == nil && (status < 200 || status >= 400) {
		err = errors.New("status " + strconv.Itoa(status))
	}
	return err
}

// maxBody bounds what is read of an answer, in bytes, as a kubelet does.
const maxBody = 10 << 10

// maxAnswer bounds an answer with its header.
const maxAnswer = 1 << 20

// get makes a request and returns the status of the answer.
func get(ctx context.Context, conn net.Conn, h *workload.HTTP) (status int, err error) {
	host := h.Host
	if host == "" {
		host = "localhost"
	}
	if h.TLS {
		conn = tls.Client(conn, &tls.Config{InsecureSkipVerify: true}) // as a kubelet's probe does
	}
	path := h.Path
	if path == "" || path[0] != '/' {
		path = "/" + path
	}
	url := "http://" + net.JoinHostPort(host, strconv.Itoa(int(h.Port))) + path
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, err
	}
	req.Header.Set("User-Agent", "subpod-probe")
	for _, header := range h.Headers {
		if http.CanonicalHeaderKey(header[0]) == "Host" {
			req.Host = header[1]
			continue
		}
		req.Header.Set(header[0], header[1])
	}
	req.Close = true
	if err := req.Write(conn); err != nil {
		return 0, err
	}
	resp, err := http.ReadResponse(bufio.NewReader(io.LimitReader(conn, maxAnswer)), req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	_, _ = io.CopyN(io.Discard, resp.Body, maxBody)
	return resp.StatusCode, nil
}
