package control

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/api"
	"github.com/subpod/subpod/pkg/pod"
	"github.com/subpod/subpod/pkg/state"
)

const (
	// leavingTimeout bounds how long a request waits for pods that are being removed.
	leavingTimeout = 10 * time.Second
	// leavingPoll is the time between two attempts.
	leavingPoll = 10 * time.Millisecond
)

// onceLeft removes what pods use. What only "run --rm" has used, which has ended, is in
// use until its pod is removed: its user knows nothing of that, and it is waited for.
func onceLeft(ctx context.Context, st *state.Store, remove func() error) error {
	return unlessLeft(ctx, st, remove, errdefs.ErrFailedPrecondition)
}

// onceFree makes a pod, which may need what only "run --rm" has had: a name, host ports,
// addresses, IDs.
func onceFree(ctx context.Context, st *state.Store, make func() error) error {
	return unlessLeft(ctx, st, make, errdefs.ErrAlreadyExists, pod.ErrNoIDs)
}

// unlessLeft does what is refused, with one of the errors, because of what pods have: once
// more while a pod of "run --rm" that has ended is being removed.
func unlessLeft(ctx context.Context, st *state.Store, do func() error, refused ...error) error {
	for deadline := time.Now().Add(leavingTimeout); ; {
		leaves := anyLeaves(st) // before: what it is refused for may be gone afterwards
		err := do()
		ofPods := slices.ContainsFunc(refused, func(r error) bool { return errors.Is(err, r) })
		if !ofPods || !leaves || time.Now().After(deadline) {
			return err
		}
		select {
		case <-time.After(leavingPoll):
		case <-ctx.Done():
			return err
		}
	}
}

// anyLeaves reports whether a pod whose containers have ended, and are removed before it, is
// going to be removed.
func anyLeaves(st *state.Store) bool {
	if st == nil {
		return false
	}
	return slices.ContainsFunc(st.Pods(), func(p state.Pod) bool {
		containers := st.ContainersOf(p.ID)
		begun := len(containers) > 0 || p.Status.Phase == state.PodStopping || p.Status.Phase == state.PodNotReady
		return begun && p.Config.V.GetAnnotations()[api.AnnotationWhenDone] == api.WhenDoneRemove && !p.Supervised() &&
			!slices.ContainsFunc(containers, func(c state.Container) bool { return c.State() != runtimeapi.ContainerState_CONTAINER_EXITED })
	})
}
