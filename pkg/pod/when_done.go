package pod

import (
	"context"
	"os"
	"path/filepath"

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
	ctx, cancel := r.detached(ctx)
	defer cancel()
	switch todo {
	case labels.Stop:
		err = r.StopPod(ctx, p.ID)
	case labels.Remove:
		err = r.RemovePod(ctx, p.ID)
		r.removeLogs(p)
	}
	if err != nil {
		r.Log.Warn("a pod sandbox whose containers have ended is still there", "pod", p.ID, "error", err)
	}
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
