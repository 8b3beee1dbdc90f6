package control

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/api"
	"github.com/subpod/subpod/pkg/state"
)

// TestOnceLeft: a removal that is refused for a pod of "run --rm" is tried again, also when
// the pod's records go, one after the other, at that very moment; for no other pod.
func TestOnceLeft(t *testing.T) {
	for _, c := range []struct {
		name     string
		whenDone string
		refusals int
		want     error
	}{
		{"it goes as a whole", api.WhenDoneRemove, 1, nil},
		{"its container goes first", api.WhenDoneRemove, 2, nil},
		{"it stays", "", 1, errdefs.ErrFailedPrecondition},
	} {
		t.Run(c.name, func(t *testing.T) {
			st, err := state.Open(filepath.Join(t.TempDir(), "state.db"), slog.New(slog.DiscardHandler))
			if err != nil {
				t.Fatal(err)
			}
			defer st.Close()
			putExited(t, st, "p", "c", c.whenDone)
			tries := 0
			err = onceLeft(t.Context(), st, func() error {
				if tries++; tries > c.refusals {
					return nil
				}
				var gone error
				if tries == 1 {
					gone = st.DeleteContainer("c")
				}
				if tries == c.refusals {
					gone = errors.Join(gone, st.DeletePod("p"))
				}
				return errors.Join(gone, errdefs.ErrFailedPrecondition)
			})
			if !errors.Is(err, c.want) {
				t.Errorf("%v after %d tries, want %v", err, tries, c.want)
			}
		})
	}
}

func putExited(t *testing.T, st *state.Store, podID, id, whenDone string) {
	t.Helper()
	pod := state.Pod{ID: podID, Status: state.PodStatus{Phase: state.PodNotReady},
		Config: state.Msg(&runtimeapi.PodSandboxConfig{Annotations: map[string]string{api.AnnotationWhenDone: whenDone}})}
	exited := state.Container{ID: id, PodID: podID, Config: state.Msg(&runtimeapi.ContainerConfig{}),
		Status: state.ContainerStatus{Created: true, StartedAt: time.Now(), FinishedAt: time.Now()}}
	if err := errors.Join(st.PutPod(pod), st.PutContainer(exited)); err != nil {
		t.Fatal(err)
	}
}

// TestRefusedAmongOthers: where one "run --rm" ends after the other, what is refused for
// another reason is refused as soon as those are gone that had ended before.
func TestRefusedAmongOthers(t *testing.T) {
	st, err := state.Open(filepath.Join(t.TempDir(), "state.db"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	putExited(t, st, "p0", "c0", api.WhenDoneRemove)
	tries := 0
	err = onceFree(t.Context(), st, func() error {
		gone, next := fmt.Sprint(tries), fmt.Sprint(tries+1)
		if tries++; tries > 10 {
			return nil
		}
		putExited(t, st, "p"+next, "c"+next, api.WhenDoneRemove)
		return errors.Join(errdefs.ErrAlreadyExists, st.DeleteContainer("c"+gone), st.DeletePod("p"+gone))
	})
	if !errors.Is(err, errdefs.ErrAlreadyExists) || tries != 2 {
		t.Errorf("%v after %d tries", err, tries)
	}
}
