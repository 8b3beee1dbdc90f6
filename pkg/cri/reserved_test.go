package cri

import (
	"context"
	"log/slog"
	"path/filepath"
	"testing"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc/metadata"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/api"
	"github.com/subpod/subpod/pkg/state"
)

func openState(t *testing.T) *state.Store {
	t.Helper()
	s, err := state.Open(filepath.Join(t.TempDir(), "state.db"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// Labels and annotations that the server acts on are taken from its own commands only.
func TestReserved(t *testing.T) {
	own := metadata.NewIncomingContext(t.Context(), metadata.Pairs(api.CommandHeader, "1"))
	records := openState(t)
	kubelets := podRecord("kubelet", state.PodReady, nil)
	kubelets.Config.V.Labels = nil
	played := podRecord("played", state.PodReady, nil)
	played.Config.V.Labels = map[string]string{api.LabelMadeBy: api.MadeByPlay}
	for _, p := range []state.Pod{kubelets, played} {
		if err := records.PutPod(p); err != nil {
			t.Fatal(err)
		}
	}
	containers := &containerService{state: records}
	for _, key := range []string{
		api.LabelMadeBy, api.AnnotationRunID, api.AnnotationWhenDone, api.AnnotationNetwork, api.AnnotationUser, api.AnnotationSubPaths,
	} {
		m := map[string]string{"a": "1", key: "x"}
		// Rejected before the manager is asked: there is none.
		_, err := (&sandboxService{}).RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: &runtimeapi.PodSandboxConfig{Annotations: m}})
		if !errdefs.IsInvalidArgument(err) {
			t.Errorf("annotation %s of a pod sandbox: %v", key, err)
		}
		_, err = (&sandboxService{}).RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: &runtimeapi.PodSandboxConfig{Labels: m}})
		if !errdefs.IsInvalidArgument(err) {
			t.Errorf("label %s of a pod sandbox: %v", key, err)
		}
		_, err = containers.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: "kubelet", Config: &runtimeapi.ContainerConfig{Annotations: m}})
		if !errdefs.IsInvalidArgument(err) {
			t.Errorf("annotation %s of a container: %v", key, err)
		}
		if err := checkReserved(own, nil, m); err != nil {
			t.Errorf("%s of a command: %v", key, err)
		}
	}
	if !containers.ofCommand("played") {
		t.Error("an earlier version's play could not restart its containers any more")
	}
	for _, ctx := range []context.Context{own, t.Context()} {
		if err := checkReserved(ctx, nil, map[string]string{"subpod.io/other": "1", "made-by": "x"}); err != nil {
			t.Error(err)
		}
	}
}
