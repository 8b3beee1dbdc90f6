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
// more while a pod of "run --rm" is being removed that had ended before. What ends later was no
// reason when it was asked for, and where there is always another one it would never be said.
func unlessLeft(ctx context.Context, st *state.Store, do func() error, refused ...error) error {
	leaving := leavingPods(st)
	for deadline := time.Now().Add(leavingTimeout); ; {
		err := do()
		ofPods := slices.ContainsFunc(refused, func(r error) bool { return errors.Is(err, r) })
		if !ofPods || len(leaving) == 0 || time.Now().After(deadline) {
			return err
		}
		select {
		case <-time.After(leavingPoll):
		case <-ctx.Done():
			return err
		}
		// Before it is done: what it is refused for may be gone afterwards.
		now := leavingPods(st)
		leaving = slices.DeleteFunc(leaving, func(id string) bool { return !slices.Contains(now, id) })
	}
}

// leavingPods returns the IDs of pods whose containers have ended, and are removed before them,
// and that are going to be removed.
func leavingPods(st *state.Store) []string {
	if st == nil {
		return nil
	}
	var out []string
	for _, p := range st.Pods() {
		if p.Config.V.GetAnnotations()[api.AnnotationWhenDone] != api.WhenDoneRemove || p.Supervised() {
			continue
		}
		containers := st.ContainersOf(p.ID)
		begun := len(containers) > 0 || p.Status.Phase == state.PodStopping || p.Status.Phase == state.PodNotReady
		if begun && !slices.ContainsFunc(containers, func(c state.Container) bool { return c.State() != runtimeapi.ContainerState_CONTAINER_EXITED }) {
			out = append(out, p.ID)
		}
	}
	return out
}
