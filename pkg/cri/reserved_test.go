package cri

import (
	"context"
	"testing"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc/metadata"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/api"
)

// Labels and annotations that the server acts on are taken from its own commands only.
func TestReserved(t *testing.T) {
	own := metadata.NewIncomingContext(t.Context(), metadata.Pairs(api.CommandHeader, "1"))
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
		_, err = (&containerService{}).CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{Config: &runtimeapi.ContainerConfig{Annotations: m}})
		if !errdefs.IsInvalidArgument(err) {
			t.Errorf("annotation %s of a container: %v", key, err)
		}
		if err := checkReserved(own, nil, m); err != nil {
			t.Errorf("%s of a command: %v", key, err)
		}
	}
	for _, ctx := range []context.Context{own, t.Context()} {
		if err := checkReserved(ctx, nil, map[string]string{"subpod.io/other": "1", "made-by": "x"}); err != nil {
			t.Error(err)
		}
	}
}
