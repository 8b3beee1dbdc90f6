package pod

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/labels"
	"github.com/subpod/subpod/pkg/state"
)

// whenDone does what the pod sandbox's annotation labels.WhenDone asks for, once
// the pod has containers and none of them is left to end. A pod that a command
// has made then leaves nothing behind, whatever became of the command.
func (r *Runtime) whenDone(ctx context.Context, podID string) {
	p, err := r.State.Pod(podID)
	if err != nil {
		return
	}
	todo := p.Config.V.GetAnnotations()[labels.WhenDone]
	if todo == "" || !r.done(p.ID) {
		return
	}
	select {
	case <-r.recovered: // nobody puts the pod's network and ports in order any more
	case <-ctx.Done():
		return
	}
	for pause := time.Second; ; pause = min(2*pause, time.Minute) {
		if err = r.leave(ctx, p, todo); err == nil {
			return
		}
		r.Log.Warn("a pod sandbox whose containers have ended is still there", "pod", p.ID, "error", err)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
	}
}

func (r *Runtime) leave(ctx context.Context, p state.Pod, todo string) error {
	if todo == labels.Remove {
		return r.discard(ctx, p.ID)
	}
	ctx, cancel := r.detached(ctx)
	defer cancel()
	return r.StopPod(ctx, p.ID)
}

// recoverWhenDone does what a server did not come to before it died. What "subpod
// run" has made and not started goes as well: its session has ended with the
// server.
func (r *Runtime) recoverWhenDone(ctx context.Context, p state.Pod) error {
	if p.Config.V.GetAnnotations()[labels.WhenDone] == "" {
		return nil
	}
	started := slices.ContainsFunc(r.State.ContainersOf(p.ID), func(c state.Container) bool { return !c.Status.StartedAt.IsZero() })
	if !started && p.Config.V.GetLabels()[labels.MadeBy] == labels.Run {
		return r.discard(ctx, p.ID)
	}
	if r.done(p.ID) {
		r.wg.Go(func() { r.whenDone(r.ctx, p.ID) })
	}
	return nil
}

// done reports whether the pod had containers and all have exited.
func (r *Runtime) done(podID string) bool {
	list := r.State.ContainersOf(podID)
	for _, c := range list {
		if c.State() != runtimeapi.ContainerState_CONTAINER_EXITED {
			return false
		}
	}
	return len(list) > 0
}

// removeLogs removes the log directory of a pod that a command has made: it is
// in a directory of ours.
func (r *Runtime) removeLogs(p state.Pod) {
	dir := p.Config.V.GetLogDirectory()
	if r.LogDir == "" || dir == "" || filepath.Dir(filepath.Clean(dir)) != filepath.Clean(r.LogDir) {
		return
	}
	if err := os.RemoveAll(dir); err != nil {
		r.Log.Warn("a log directory is left", "path", dir, "error", err)
	}
}
