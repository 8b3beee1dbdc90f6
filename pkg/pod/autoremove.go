package pod

import (
	"context"
	"slices"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/api"
	"github.com/subpod/subpod/pkg/state"
)

// The pauses between tries to remove or stop a pod sandbox whose containers have
// exited: the first one, doubled up to the last.
const (
	autoRemovePause    = time.Second
	autoRemoveMaxPause = time.Minute
)

// autoRemove stops or removes a pod sandbox as its annotation api.AnnotationWhenDone asks
// for, once it has containers and all of them have exited ("subpod run --rm"). A pod
// that a command has made then leaves nothing behind, whatever became of the command.
func (m *Manager) autoRemove(ctx context.Context, podID string) {
	p, err := m.State.Pod(podID)
	if err != nil {
		return
	}
	action := p.Config.V.GetAnnotations()[api.AnnotationWhenDone]
	// A try that failed may have removed the containers.
	due := func() bool { return !m.inUse(podID) && !m.keeps(podID) }
	if action == "" || len(m.State.ContainersOf(podID)) == 0 || !due() {
		return
	}
	select {
	case <-m.recovered: // recovery no longer restores the pod's network and ports
	case <-ctx.Done():
		return
	}
	for pause := autoRemovePause; ; pause = min(2*pause, autoRemoveMaxPause) {
		stop, cancel := detached(ctx)
		err = m.stopPod(stop, p.ID, due)
		cancel()
		if err == nil && action == api.WhenDoneRemove && due() {
			err = m.removeWithLogs(ctx, p.ID)
		}
		if err == nil {
			return
		}
		m.Log.Warn("a pod sandbox whose containers have exited could not be removed; it is tried again", "pod", p.ID, "error", err)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
	}
}

// resumeRemoval resumes automatic removals that were pending when the previous server
// exited. What "subpod run" has made and not started is removed as well: its session
// has ended with the server.
func (r recovery) resumeRemoval(ctx context.Context, p state.Pod) error {
	if p.Config.V.GetAnnotations()[api.AnnotationWhenDone] == "" {
		return nil
	}
	containers := r.State.ContainersOf(p.ID)
	// One that was made again has run.
	started := slices.ContainsFunc(containers, func(c state.Container) bool { return c.Restarts > 0 || !c.Status.StartedAt.IsZero() })
	if !started && len(containers) > 0 && p.Workload != nil && p.Supervision.Stopped {
		return nil // "subpod create"
	}
	if !started && p.Config.V.GetLabels()[api.LabelMadeBy] == api.MadeByRun {
		return r.removeWithLogs(ctx, p.ID)
	}
	if len(containers) > 0 && !r.inUse(p.ID) {
		r.Manager.running.Go(func() { r.autoRemove(r.ctx, p.ID) })
	}
	return nil
}

// keeps reports whether a pod whose containers have exited is to stay as it is: they are
// restarted.
func (b *base) keeps(podID string) bool {
	p, err := b.State.Pod(podID)
	return err == nil && p.Supervised() || b.restarting.has(podID)
}

// inUse reports whether the pod has a container that has not exited.
func (b *base) inUse(podID string) bool {
	return slices.ContainsFunc(b.State.ContainersOf(podID), func(c state.Container) bool {
		return c.State() != runtimeapi.ContainerState_CONTAINER_EXITED
	})
}
