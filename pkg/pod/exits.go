package pod

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/oci"
	"github.com/subpod/subpod/pkg/state"
)

// Reasons of an exited container, as the kubelet shows them.
const (
	reasonCompleted  = "Completed"
	reasonError      = "Error"
	reasonOOMKilled  = "OOMKilled"
	reasonStartError = "StartError"
	// reasonUnknown is what the kubelet uses for a container whose end nobody saw.
	reasonUnknown = "ContainerStatusUnknown"
)

const (
	// exitStartError is the exit code of a container that could not be started, as
	// the kubelet knows it from other runtimes.
	exitStartError = 128
	// exitUnknown is the exit code of a container whose end nobody saw: killed.
	exitUnknown = 137
)

const (
	// recordRetryPause is the pause before an exit status is written again that could
	// not be written, and before a container is waited for again that could not be.
	recordRetryPause = time.Second
	// waitRetryTimeout is how long it is tried to learn how a container has ended.
	waitRetryTimeout = 10 * time.Second
)

// exitWatcher waits for containers' init processes to exit and records their exit
// status. All exit statuses are written by its method record, also those that other
// operations find out (a failed start, a rebooted node), and the first one stands.
type exitWatcher struct {
	state     records
	processes processes
	events    publisher
	notices   notices
	log       *slog.Logger

	mu      sync.Mutex
	watches map[string]*watch // by container ID
}

// watch is the wait for one container. done is closed once the exit status is in
// the record, and in status.
type watch struct {
	attempt  uint32 // of the run
	done     chan struct{}
	dropped  chan struct{} // closed when there is no such run after all
	status   state.ContainerStatus
	starting chan struct{} // closed when a start under way has been recorded; nil without one
}

// begin adds a watch for the container, and reports whether it is new. A watch whose
// exit is recorded is another run's.
func (e *exitWatcher) begin(c state.Container) (_ *watch, added bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if w := e.watches[c.ID]; w != nil && !w.ended() {
		return w, false
	}
	w := &watch{attempt: c.Attempt(), done: make(chan struct{}), dropped: make(chan struct{})}
	e.watches[c.ID] = w
	return w, true
}

// end removes a watch. The container may have another one by now: it was started again.
func (e *exitWatcher) end(id string, w *watch) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.watches[id] == w {
		delete(e.watches, id)
	}
}

// drop ends a watch of a run that has not become one: nobody waits for it any more.
func (e *exitWatcher) drop(id string, w *watch) {
	e.end(id, w)
	close(w.dropped)
}

// watchOf returns the watch of a container; nil when it has none: it has exited, or
// has no process.
func (e *exitWatcher) watchOf(id string) *watch {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.watches[id]
}

// ended reports whether nothing is left to wait for: the container has exited and that
// is published, or it has no process.
func (e *exitWatcher) ended(id string) bool {
	w := e.watchOf(id)
	return w == nil || w.ended()
}

func (w *watch) ended() bool {
	select {
	case <-w.done:
		return true
	default:
		return false
	}
}

// starting holds back the record of the container's exit until the returned function
// is called: a start is recorded before the exit that follows it.
func (e *exitWatcher) starting(id string) (recorded func()) {
	e.mu.Lock()
	defer e.mu.Unlock()
	w := e.watches[id]
	if w == nil {
		return func() {}
	}
	started := make(chan struct{})
	w.starting = started
	return func() { close(started) }
}

// follow waits for the container's exit and records it. It reports false when ctx
// ended first: the server stops, and the next one waits.
func (e *exitWatcher) follow(ctx context.Context, c state.Container, w *watch) bool {
	exit, err := e.await(ctx, c)
	if ctx.Err() != nil {
		return false
	}
	e.mu.Lock()
	starting := w.starting
	e.mu.Unlock()
	if starting != nil {
		select {
		case <-starting:
		case <-ctx.Done():
			return false
		}
	}
	status := exitStatus(exit, err)
	// A full disk, most likely, is waited for: without its status the container would
	// seem to run for ever.
	for e.record(c.ID, status) != nil {
		select {
		case <-time.After(recordRetryPause):
		case <-ctx.Done():
			return false
		}
	}
	w.status = status
	if c, err := e.state.Container(c.ID); err == nil {
		w.status = c.Status
	}
	close(w.done)
	return true
}

// await returns how a container has ended. A wait that fails, for want of descriptors most
// likely, is no end of the container: it is repeated as long as init lives, and
// waitRetryTimeout longer.
func (e *exitWatcher) await(ctx context.Context, c state.Container) (exit oci.Exit, err error) {
	logged := false
	var gone time.Time // since when init has ended
	for {
		if exit, err = e.processes.Wait(ctx, c.ID, *c.Allocated.Runtime); err == nil || ctx.Err() != nil {
			return exit, err
		}
		if !logged {
			logged = true
			e.log.Error("waiting for a container failed; it is tried again", "container", c.ID, "error", err)
		}
		switch {
		case !c.Allocated.Runtime.Init.Ending():
			gone = time.Time{}
		case gone.IsZero():
			gone = time.Now()
		case time.Since(gone) >= waitRetryTimeout:
			e.log.Error("how a container has ended cannot be found out", "container", c.ID, "error", err)
			return exit, err
		}
		select {
		case <-time.After(recordRetryPause):
		case <-ctx.Done():
			return exit, ctx.Err()
		}
	}
}

// exitStatus is what the record says of an exit.
func exitStatus(exit oci.Exit, err error) state.ContainerStatus {
	status := state.ContainerStatus{ExitCode: exit.Code, FinishedAt: exit.At}
	switch {
	case err != nil:
		status = state.ContainerStatus{ExitCode: exitUnknown, Reason: reasonUnknown, Message: err.Error()}
	case exit.Unknown:
		status.Reason = reasonUnknown
		status.Message = "the container's monitor ended before the container; its exit code is not known"
	case exit.OOMKilled:
		status.Reason = reasonOOMKilled
	case exit.Code == 0:
		status.Reason = reasonCompleted
	default:
		status.Reason = reasonError
	}
	if status.FinishedAt.IsZero() {
		status.FinishedAt = time.Now()
	}
	return status
}

// errRecorded says that a container has an exit status already.
var errRecorded = errors.New("the container has an exit status")

// record writes an exit status, unless the container has one or is gone, and
// publishes the event. Idempotent.
func (e *exitWatcher) record(id string, status state.ContainerStatus) error {
	c, err := e.state.UpdateContainer(id, func(c *state.Container) error {
		if !c.Status.FinishedAt.IsZero() {
			return errRecorded
		}
		s := &c.Status
		s.ExitCode, s.Reason, s.Message = status.ExitCode, status.Reason, status.Message
		// The end is the time of a file, whose clock is some milliseconds behind (time(7)).
		s.FinishedAt = status.FinishedAt
		if s.FinishedAt.Before(s.StartedAt) {
			s.FinishedAt = s.StartedAt
		}
		return nil
	})
	if errors.Is(err, state.ErrNotFound) || errors.Is(err, errRecorded) {
		return nil
	}
	if err != nil {
		e.log.Error("an exit status could not be written", "container", id, "error", err)
		return err
	}
	e.events.container(c, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT)
	e.notices.container(context.Background(), ContainerStop, c)
	return nil
}

// wait returns once the exit status of the container is in its record; at once when
// it is not watched. server ends when the server stops.
func (e *exitWatcher) wait(ctx, server context.Context, id string) error {
	w := e.watchOf(id)
	if w == nil {
		return nil
	}
	return ignoreDropped(w.wait(ctx, server))
}

// errDropped says that a run was not recorded, and is none.
var errDropped = fmt.Errorf("%w: the container could not be recorded", errdefs.ErrAborted)

func ignoreDropped(err error) error {
	if errors.Is(err, errDropped) {
		return nil
	}
	return err
}

func (w *watch) wait(ctx, server context.Context) error {
	select {
	case <-w.done:
		return nil
	case <-w.dropped:
		return errDropped
	case <-ctx.Done():
		return ctx.Err()
	case <-server.Done():
		return server.Err()
	}
}

// watch follows a container that the OCI runtime has made, unless it is followed.
func (m *Manager) watch(c state.Container) *watch {
	w, added := m.exits.begin(c)
	if added {
		m.follow(c, w)
	}
	return w
}

// follow waits until the container's exit is recorded, then cleans it up and removes
// its pod sandbox where that is asked for.
func (m *Manager) follow(c state.Container, w *watch) {
	attendant{m}.attend(c, w.done)
	m.running.Go(func() {
		defer m.exits.end(c.ID, w)
		if !m.exits.follow(m.ctx, c, w) {
			return
		}
		m.clean(c.ID)
		m.Changed(c.PodID)
		m.autoRemove(m.ctx, c.PodID)
	})
}

// clean frees what an exited container no longer needs. A failure is only logged:
// removal runs the same steps again.
func (b *base) clean(id string) {
	ctx, cancel := context.WithTimeout(context.Background(), cleanupTimeout)
	defer cancel()
	held, err := b.container(ctx, id, exclusive)
	if err != nil {
		return
	}
	defer held.unlock()
	if held.Allocated.Cleaned || held.State() != runtimeapi.ContainerState_CONTAINER_EXITED {
		return // or started again meanwhile
	}
	if err := b.Containers.Clean(ctx, held.Container); err != nil {
		b.Log.Warn("an exited container could not be cleaned up; it is tried again when it is removed", "container", id, "error", err)
		return
	}
	if err := held.update(func(c *state.Container) { c.Allocated.Cleaned, c.Allocated.Remaking = true, false }); err != nil {
		b.Log.Warn("a clean-up could not be recorded", "container", id, "error", err)
	}
}
