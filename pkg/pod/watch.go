package pod

import (
	"context"
	"errors"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/state"
)

// watch waits for the end of one container and is the only writer of its exit
// status. done is closed once the status is in the record, and here.
type watch struct {
	done   chan struct{}
	status state.ContainerStatus
}

// Reasons of an exited container, as the kubelet shows them.
const (
	reasonCompleted  = "Completed"
	reasonError      = "Error"
	reasonOOMKilled  = "OOMKilled"
	reasonStartError = "StartError"
	// reasonUnknown is what the kubelet uses for a container whose end nobody saw.
	reasonUnknown = "ContainerStatusUnknown"
)

// exitUnknown is the exit code of a container whose end nobody saw: killed.
const exitUnknown = 137

// watchContainer starts the watch of a container that the OCI runtime has made.
func (r *Runtime) watchContainer(c state.Container) *watch {
	r.mu.Lock()
	defer r.mu.Unlock()
	if w := r.watches[c.ID]; w != nil {
		return w
	}
	w := &watch{done: make(chan struct{})}
	r.watches[c.ID] = w
	r.wg.Go(func() {
		r.follow(c, w)
		r.mu.Lock()
		delete(r.watches, c.ID)
		r.mu.Unlock()
		if r.ctx.Err() == nil {
			r.whenDone(r.ctx, c.PodID)
		}
	})
	return w
}

func (r *Runtime) follow(c state.Container, w *watch) {
	exit, err := r.Executor.Wait(r.ctx, c.ID, *c.Allocated.Runtime)
	if r.ctx.Err() != nil {
		return // the server stops; the next one watches
	}
	status := state.ContainerStatus{ExitCode: exit.Code, FinishedAt: exit.At}
	switch {
	case err != nil:
		r.Log.Error("waiting for a container failed", "container", c.ID, "error", err)
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
	for !r.finished(c.ID, status, w) {
		// A full disk, most likely. Without its status the container would seem
		// to run for ever.
		select {
		case <-time.After(finishRetry):
		case <-r.ctx.Done():
			return
		}
	}
	close(w.done)
	r.clean(c.ID)
}

// finished writes the exit status and keeps in w what stands in the record then.
func (r *Runtime) finished(id string, status state.ContainerStatus, w *watch) bool {
	if r.finish(id, status) != nil {
		return false
	}
	w.status = status
	if c, err := r.State.Container(id); err == nil {
		w.status = c.Status
	}
	return true
}

// finishRetry is the pause before an exit status is written again that could
// not be written.
const finishRetry = time.Second

// finish writes the exit status, unless one stands there already.
func (r *Runtime) finish(id string, status state.ContainerStatus) error {
	_, err := r.State.UpdateContainer(id, func(c *state.Container) error {
		if !c.Status.FinishedAt.IsZero() {
			return nil
		}
		s := &c.Status
		s.ExitCode, s.Reason, s.Message = status.ExitCode, status.Reason, status.Message
		s.FinishedAt = later(status.FinishedAt, s.StartedAt)
		return nil
	})
	if errors.Is(err, state.ErrNotFound) {
		return nil
	}
	if err != nil {
		r.Log.Error("an exit status could not be written", "container", id, "error", err)
		return err
	}
	r.emitContainer(id, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT)
	return nil
}

// clean frees what an exited container no longer needs. A failure is only
// logged: removal runs the same steps again.
func (r *Runtime) clean(id string) {
	ctx, cancel := context.WithTimeout(context.Background(), cleanupTimeout)
	defer cancel()
	unlock, err := r.containers.alone(ctx, id)
	if err != nil {
		return
	}
	defer unlock()
	c, err := r.State.Container(id)
	if err != nil || c.Allocated.Cleaned {
		return
	}
	if err := r.cleanContainer(ctx, c); err != nil {
		r.Log.Warn("an exited container could not be cleaned up yet", "container", id, "error", err)
		return
	}
	if _, err := r.State.UpdateContainer(id, func(c *state.Container) error {
		c.Allocated.Cleaned = true
		return nil
	}); err != nil && !errors.Is(err, state.ErrNotFound) {
		r.Log.Warn("a clean-up could not be recorded", "container", id, "error", err)
	}
}

// ended waits until the exit status of the container is in its record.
func (r *Runtime) ended(ctx context.Context, id string) error {
	r.mu.Lock()
	w := r.watches[id]
	r.mu.Unlock()
	if w == nil {
		return nil
	}
	select {
	case <-w.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-r.ctx.Done():
		return r.ctx.Err()
	}
}
