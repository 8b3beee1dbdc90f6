package control

import (
	"errors"
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
			pod := state.Pod{ID: "p", Status: state.PodStatus{Phase: state.PodNotReady},
				Config: state.Msg(&runtimeapi.PodSandboxConfig{Annotations: map[string]string{api.AnnotationWhenDone: c.whenDone}})}
			exited := state.Container{ID: "c", PodID: "p", Config: state.Msg(&runtimeapi.ContainerConfig{}),
				Status: state.ContainerStatus{Created: true, StartedAt: time.Now(), FinishedAt: time.Now()}}
			if err := errors.Join(st.PutPod(pod), st.PutContainer(exited)); err != nil {
				t.Fatal(err)
			}
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
