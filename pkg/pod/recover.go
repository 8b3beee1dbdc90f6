package pod

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/state"
)

// recoverTimeout bounds the recovery of one pod sandbox; the others are recovered
// all the same.
const recoverTimeout = 20 * time.Second

// recoverParallelism is how many pod sandboxes are recovered at the same time.
const recoverParallelism = 8

// Recover reconciles the stored records with the actual state of the node, after the
// server was stopped, killed or replaced, or the node rebooted. It assumes:
//
//   - only this process changes the records (state.ErrHeld guards that);
//   - a record is written before its side effect, so that what is there is in
//     a record, or is an orphan;
//   - within one node (same identity) pins, mounts, networks and containers
//     outlive the server; in a new node nothing of the old one is left but
//     files.
//
// What cannot be recovered is logged, stays in its record and is tried again while
// requests are served.
func (m *Manager) Recover(ctx context.Context) {
	r := recovery{m}
	for _, p := range m.State.Pods() {
		m.podNames.restore(podName(p.Config.V.GetMetadata()), p.ID)
	}
	for _, c := range m.State.Containers() {
		m.containerNames.restore(containerName(c.PodID, c.Config.V.GetMetadata()), c.ID)
	}
	failed := r.eachPod(ctx, r.pod)
	r.removeUnowned(ctx)
	if err := m.Sandboxes.Reconcile(ctx, r.livePods()); err != nil {
		m.Log.Error("the pod network could not be restored", "error", err)
	}
	if err := m.Orphans.Sweep(ctx); err != nil {
		m.Log.Warn("some of what no record knows of could not be removed; it is tried again at the next start", "error", err)
	}
	close(m.recovered)
	failed = append(failed, r.eachPod(ctx, r.resumeRemoval)...)
	slices.Sort(failed)
	for _, id := range slices.Compact(failed) {
		m.running.Go(func() { r.again(m.ctx, id) })
	}
}

// recovery has the steps of Recover.
type recovery struct{ *Manager }

// eachPod calls do for all pod sandboxes, some at the same time, and returns the IDs of
// those for which it failed.
func (r recovery) eachPod(ctx context.Context, do func(context.Context, state.Pod) error) (failed []string) {
	var mu sync.Mutex
	var group errgroup.Group
	group.SetLimit(recoverParallelism)
	for _, p := range r.State.Pods() {
		group.Go(func() error {
			ctx, cancel := context.WithTimeout(ctx, recoverTimeout)
			defer cancel()
			if err := do(ctx, p); err != nil {
				r.Log.Error("a pod sandbox could not be recovered; it is tried again", "pod", p.ID, "error", err)
				mu.Lock()
				failed = append(failed, p.ID)
				mu.Unlock()
			}
			return nil
		})
	}
	_ = group.Wait()
	return failed
}

// again recovers a pod sandbox until that succeeds: on a full disk, most likely, its
// record says something else than what is there, and the exits of its containers are
// not waited for.
func (r recovery) again(ctx context.Context, id string) {
	for pause := autoRemovePause; ; pause = min(2*pause, autoRemoveMaxPause) {
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
		err := r.podAgain(ctx, id)
		if err == nil || errors.Is(err, state.ErrNotFound) {
			return
		}
		r.Log.Error("a pod sandbox could not be recovered; it is tried again", "pod", id, "error", err)
	}
}

// podAgain is pod and resumeRemoval while requests are served.
func (r recovery) podAgain(ctx context.Context, id string) error {
	held, err := r.Manager.pod(ctx, id, exclusive)
	if err != nil {
		return err
	}
	bounded, cancel := context.WithTimeout(held.ctx, recoverTimeout)
	defer cancel()
	err = r.pod(bounded, held.Pod)
	held.unlock()
	if err != nil {
		return err
	}
	return r.resumeRemoval(ctx, held.Pod)
}

func (r recovery) pod(ctx context.Context, p state.Pod) error {
	rebooted := p.Allocated.Node != r.NodeID
	var errs []error
	for _, c := range r.State.ContainersOf(p.ID) {
		errs = append(errs, r.container(ctx, c, rebooted))
	}
	switch {
	case p.Status.Phase == state.PodCreating:
		// Its client got an error, or no answer: it will ask again.
		errs = append(errs, r.undoPod(ctx, &newPod{Pod: p, name: podName(p.Config.V.GetMetadata())}))
	case p.Status.Phase == state.PodReady && rebooted:
		errs = append(errs, r.markLost(ctx, p, "the node was rebooted"))
	case p.Status.Phase == state.PodReady:
		if reason := r.Sandboxes.Lost(p); reason != "" {
			errs = append(errs, r.markLost(ctx, p, reason))
		}
	case p.Status.Phase == state.PodStopping && rebooted:
		errs = append(errs, r.markLost(ctx, p, p.Status.Reason))
	}
	return errors.Join(errs...)
}

// removeUnowned removes containers whose pod sandbox has lost its record to damage of
// the disk: no request could get at them by it.
func (r recovery) removeUnowned(ctx context.Context) {
	for _, c := range r.State.Containers() {
		if _, err := r.State.Pod(c.PodID); !errors.Is(err, state.ErrNotFound) {
			continue
		}
		r.Log.Warn("a container is removed, because the record of its pod sandbox is lost", "container", c.ID, "pod", c.PodID)
		if err := r.deleteUncreated(ctx, c); err != nil {
			r.Log.Error("a container could not be removed", "container", c.ID, "error", err)
		}
	}
}

// markLost makes a pod sandbox not ready that cannot go on. After a reboot what is left
// of it is removed; otherwise, or where that fails, it is left to StopPodSandbox, like
// containers that still run.
func (b *base) markLost(ctx context.Context, p state.Pod, reason string) error {
	b.Log.Warn("a pod sandbox is no longer ready", "pod", p.ID, "reason", reason)
	phase := state.PodStopping
	var err error
	if p.Allocated.Node != b.NodeID {
		if err = b.Sandboxes.Teardown(ctx, p); err == nil {
			phase = state.PodNotReady
		}
	}
	_, updateErr := b.State.UpdatePod(p.ID, func(p *state.Pod) error {
		p.Status = state.PodStatus{Phase: phase, Reason: reason}
		return nil
	})
	return errors.Join(err, updateErr)
}

func (r recovery) container(ctx context.Context, c state.Container, rebooted bool) error {
	switch {
	case !c.Status.Created:
		return r.deleteUncreated(ctx, c)
	case c.State() == runtimeapi.ContainerState_CONTAINER_EXITED:
		if !c.Allocated.Cleaned || rebooted {
			r.clean(c.ID)
		}
		return nil
	case rebooted:
		when := "while the container ran"
		if c.State() == runtimeapi.ContainerState_CONTAINER_CREATED {
			when = "before the container was started"
		}
		err := r.exits.record(c.ID, state.ContainerStatus{
			ExitCode: exitUnknown, FinishedAt: time.Now(), Reason: reasonUnknown,
			Message: "the node was rebooted " + when,
		})
		r.clean(c.ID)
		return err
	case c.Allocated.Runtime == nil:
		return nil // waits for StartContainer to return its StartError
	}
	if c.State() == runtimeapi.ContainerState_CONTAINER_CREATED {
		var err error
		if c, err = r.finishStart(ctx, c); err != nil || c.State() == runtimeapi.ContainerState_CONTAINER_EXITED {
			return err
		}
	}
	w := r.watch(c)
	if c.Allocated.Runtime.Init.Alive() {
		return nil
	}
	// It ended while no server ran: its exit status is known at once.
	if err := w.wait(ctx, r.ctx); err != nil {
		return fmt.Errorf("container %s has ended and its exit status does not come: %w", c.ID, err)
	}
	return nil
}

// finishStart completes a StartContainer in which the server died; a container
// that nobody has started stays as it is.
func (r recovery) finishStart(ctx context.Context, c state.Container) (state.Container, error) {
	executed, err := r.Processes.FinishStart(ctx, c.ID, *c.Allocated.Runtime)
	if err != nil {
		return c, err
	}
	switch {
	case executed:
		return r.State.UpdateContainer(c.ID, func(c *state.Container) error {
			c.Status.StartedAt = time.Now()
			return nil
		})
	case c.Allocated.Runtime.Init.Alive():
		return c, nil
	}
	err = r.exits.record(c.ID, state.ContainerStatus{
		ExitCode: exitStartError, FinishedAt: time.Now(), Reason: reasonStartError,
		Message: "the container's process ended, while no server ran, before it executed the container's command",
	})
	r.clean(c.ID)
	if err != nil {
		return c, err
	}
	return r.State.Container(c.ID)
}

// livePods are the pod sandboxes whose network must stand.
func (r recovery) livePods() []state.Pod {
	var live []state.Pod
	for _, p := range r.State.Pods() {
		if p.Status.Phase == state.PodReady {
			live = append(live, p)
		}
	}
	return live
}
