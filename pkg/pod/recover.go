package pod

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/netns"
	"github.com/subpod/subpod/pkg/state"
	"github.com/subpod/subpod/pkg/subpath"
)

// recoverTimeout bounds the recovery of one pod sandbox; after it the next
// ones still are recovered, and this one is NotReady with the reason.
const recoverTimeout = 20 * time.Second

// Recover brings what the records say and what is there together, after the
// server was stopped, killed or replaced, or the node rebooted. It assumes:
//
//   - only this process changes the records (state.ErrHeld guards that);
//   - a record is written before its side effect, so that what is there is in
//     a record, or is an orphan;
//   - within one node (same identity) pins, mounts, networks and containers
//     outlive the server; in a new node nothing of the old one is left but
//     files.
//
// It returns an error only when serving would do harm.
func (r *Runtime) Recover(ctx context.Context) error {
	for _, p := range r.State.Pods() {
		r.podNames.set(podName(p.Config.V.GetMetadata()), p.ID)
	}
	for _, c := range r.State.Containers() {
		r.ctrNames.set(containerName(c.PodID, c.Config.V.GetMetadata()), c.ID)
	}
	r.eachPod(ctx, r.recoverPod)
	r.removeLost(ctx)
	if err := r.Network.Reconcile(ctx, r.livePods()); err != nil {
		r.Log.Error("the pod network could not be restored", "error", err)
	}
	r.sweep(ctx)
	close(r.recovered)
	r.eachPod(ctx, r.recoverWhenDone)
	return nil
}

// eachPod recovers all pod sandboxes, some at the same time.
func (r *Runtime) eachPod(ctx context.Context, do func(context.Context, state.Pod) error) {
	var group errgroup.Group
	group.SetLimit(8)
	for _, p := range r.State.Pods() {
		group.Go(func() error {
			ctx, cancel := context.WithTimeout(ctx, recoverTimeout)
			defer cancel()
			if err := do(ctx, p); err != nil {
				r.Log.Error("a pod sandbox could not be recovered", "pod", p.ID, "error", err)
			}
			return nil
		})
	}
	_ = group.Wait()
}

func (r *Runtime) recoverPod(ctx context.Context, p state.Pod) error {
	rebooted := p.Allocated.Node != r.Node
	var errs []error
	for _, c := range r.State.ContainersOf(p.ID) {
		errs = append(errs, r.recoverContainer(ctx, c, rebooted))
	}
	switch {
	case p.Status.Phase == state.PodCreating:
		// Its client got an error, or none at all: it will ask again.
		r.podNames.free(podName(p.Config.V.GetMetadata()), p.ID)
		errs = append(errs, r.undoPod(ctx, p.ID))
	case p.Status.Phase == state.PodReady && rebooted:
		errs = append(errs, r.losePod(ctx, p, "the node was rebooted"))
	case p.Status.Phase == state.PodReady:
		if reason := r.broken(p); reason != "" {
			errs = append(errs, r.losePod(ctx, p, reason))
		}
	case p.Status.Phase == state.PodStopping && rebooted:
		errs = append(errs, r.losePod(ctx, p, ""))
	}
	return errors.Join(errs...)
}

// removeLost removes containers whose pod sandbox has lost its record to damage of the
// disk: no request could get at them by it.
func (r *Runtime) removeLost(ctx context.Context) {
	for _, c := range r.State.Containers() {
		if _, err := r.State.Pod(c.PodID); !errors.Is(err, state.ErrNotFound) {
			continue
		}
		r.Log.Warn("a container is removed, because the record of its pod sandbox is lost", "container", c.ID, "pod", c.PodID)
		r.ctrNames.free(containerName(c.PodID, c.Config.V.GetMetadata()), c.ID)
		if err := r.undoContainer(ctx, c.ID); err != nil {
			r.Log.Error("a container could not be removed", "container", c.ID, "error", err)
		}
	}
}

// losePod makes a pod sandbox NotReady that cannot go on, and frees what is
// left of it. Containers that still run are left to StopPodSandbox.
func (r *Runtime) losePod(ctx context.Context, p state.Pod, reason string) error {
	r.Log.Warn("a pod sandbox is no longer ready", "pod", p.ID, "reason", reason)
	phase := state.PodStopping
	var err error
	if p.Allocated.Node != r.Node {
		phase = state.PodNotReady
		err = r.teardownPod(ctx, p)
	}
	_, updateErr := r.State.UpdatePod(p.ID, func(p *state.Pod) error {
		p.Status = state.PodStatus{Phase: phase, Reason: reason}
		return nil
	})
	return errors.Join(err, updateErr)
}

// broken says what a ready pod sandbox has lost; "" when it is whole.
func (r *Runtime) broken(p state.Pod) string {
	for _, pin := range []string{p.Allocated.Pins.Net, p.Allocated.Pins.IPC, p.Allocated.Pins.UTS, p.Allocated.Pins.User, p.Allocated.Pins.PID} {
		if pin != "" && !isNamespace(pin) {
			return fmt.Sprintf("its namespace %s is gone", filepath.Base(pin))
		}
	}
	if pause := p.Allocated.Pins.Pause; !pause.IsZero() && !pause.Alive() {
		return "the pause process of its PID namespace has exited"
	}
	return ""
}

// isNamespace reports whether path is a pinned namespace: a file of nsfs(5).
func isNamespace(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.NSFS_MAGIC
}

func (r *Runtime) recoverContainer(ctx context.Context, c state.Container, rebooted bool) error {
	switch {
	case !c.Status.Created:
		r.ctrNames.free(containerName(c.PodID, c.Config.V.GetMetadata()), c.ID)
		return r.undoContainer(ctx, c.ID)
	case c.State() == runtimeapi.ContainerState_CONTAINER_EXITED:
		if !c.Allocated.Cleaned || rebooted {
			r.clean(c.ID)
		}
		return nil
	case rebooted:
		err := r.finish(c.ID, state.ContainerStatus{
			ExitCode: exitUnknown, FinishedAt: time.Now(), Reason: reasonUnknown,
			Message: "the node was rebooted while the container ran",
		})
		r.clean(c.ID)
		return err
	case c.Allocated.Runtime == nil:
		return nil // waits for StartContainer to tell its StartError
	}
	if c.State() == runtimeapi.ContainerState_CONTAINER_CREATED {
		var err error
		if c, err = r.finishStart(ctx, c); err != nil || c.State() == runtimeapi.ContainerState_CONTAINER_EXITED {
			return err
		}
	}
	w := r.watchContainer(c)
	if c.Allocated.Runtime.Init.Alive() {
		return nil
	}
	// It ended while no server ran: its exit status is known at once.
	select {
	case <-w.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("container %s has ended and its exit status does not come: %w", c.ID, ctx.Err())
	}
}

// finishStart completes a StartContainer in which the server died; a container
// that nobody has started stays as it is.
func (r *Runtime) finishStart(ctx context.Context, c state.Container) (state.Container, error) {
	executed, err := r.Executor.FinishStart(ctx, c.ID, *c.Allocated.Runtime)
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
	r.finish(c.ID, state.ContainerStatus{
		ExitCode: exitStartError, FinishedAt: time.Now(), Reason: reasonStartError,
		Message: "the container's process ended, while no server ran, before it executed the container's command",
	})
	r.clean(c.ID)
	return r.State.Container(c.ID)
}

// livePods are the pod sandboxes whose network must stand.
func (r *Runtime) livePods() []netns.Pod {
	var live []netns.Pod
	for _, p := range r.State.Pods() {
		if p.Status.Phase == state.PodReady && p.Allocated.NetworkAsked {
			live = append(live, r.networkPod(p))
		}
	}
	return live
}

// sweep removes what no record knows. A failure is logged: the orphan is met
// again at the next start.
func (r *Runtime) sweep(ctx context.Context) {
	known := map[string]bool{}
	for _, c := range r.State.Containers() {
		known[c.ID] = true
	}
	pods := map[string]bool{}
	for _, p := range r.State.Pods() {
		pods[p.ID] = true
	}
	var errs []error
	errs = append(errs, r.Executor.Sweep(ctx, func(id string) bool { return known[id] }))
	ids, err := r.Images.RootfsIDs(ctx)
	errs = append(errs, err)
	for _, id := range ids {
		if !known[id] {
			errs = append(errs, r.Images.DeleteRootfs(ctx, id))
		}
	}
	errs = append(errs,
		sweepDir(filepath.Join(r.RunDir, "pods"), pods, releasePod),
		sweepDir(filepath.Join(r.RunDir, "containers"), known, func(string) error { return nil }),
		subpath.ReleaseAll(filepath.Join(r.RunDir, "subpaths")), // no container is being created yet
	)
	if err := errors.Join(errs...); err != nil {
		r.Log.Warn("orphans are left", "error", err)
	}
}

func sweepDir(dir string, known map[string]bool, release func(string) error) error {
	entries, err := os.ReadDir(dir)
	if err != nil && !os.IsNotExist(err) {
		return err
	}
	var errs []error
	for _, e := range entries {
		if known[e.Name()] {
			continue
		}
		path := filepath.Join(dir, e.Name())
		if err := release(path); err != nil {
			errs = append(errs, err)
			continue
		}
		errs = append(errs, os.RemoveAll(path))
	}
	return errors.Join(errs...)
}
