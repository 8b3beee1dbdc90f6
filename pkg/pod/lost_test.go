package pod

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/pkg/pod/container"
	"github.com/subpod/subpod/pkg/state"
)

// losingContainers are containers during whose creation the pod sandbox is lost.
type losingContainers struct {
	containers
	w *world
}

func (l losingContainers) Create(_ context.Context, _ *container.Prepared, p state.Pod, _ *state.Container) error {
	l.w.mu.Lock()
	defer l.w.mu.Unlock()
	delete(l.w.sandboxes, p.ID)
	return fmt.Errorf("fork: %w", unix.ENOMEM)
}

// TestLostDuringCreation: a creation that fails since the pod sandbox is lost meanwhile, as
// by the end of its PID namespace, says so, and the pod sandbox is no longer ready.
func TestLostDuringCreation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, withPod)
		defer r.m.Close()
		r.m.Containers = losingContainers{r.s, r.w}
		_, err := r.m.CreateContainer(r.ctx, r.pod, containerConfig("a"))
		if !errors.Is(err, errdefs.ErrFailedPrecondition) || !errors.Is(err, unix.ENOMEM) {
			t.Errorf("%v, want that the pod sandbox is lost, and ENOMEM", err)
		}
		if p, err := r.s.Pod(r.pod); err != nil || p.Status.Phase == state.PodReady {
			t.Errorf("the pod sandbox: %v, %v", p.Status, err)
		}
		if err := r.m.RemovePod(r.ctx, r.pod); err != nil {
			t.Error(err)
		}
	})
}
