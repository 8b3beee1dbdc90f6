package cri

import (
	"sync"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/tests/node"
)

// TestRemoveImageAtOnce: several clients remove an image, and pull it, at the same
// moment. None of them gets an error.
func TestRemoveImageAtOnce(t *testing.T) {
	n := node.Start(t, node.Options{Config: node.Bridge})
	cri := n.CRI()
	image := &runtimeapi.ImageSpec{Image: nginx}
	for range 10 {
		if _, err := cri.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: image}); err != nil {
			t.Fatal(err)
		}
		var all sync.WaitGroup
		for i := range 6 {
			all.Go(func() {
				if i == 5 {
					if _, err := cri.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: image}); err != nil {
						t.Errorf("pull: %v", err)
					}
					return
				}
				if _, err := cri.RemoveImage(t.Context(), &runtimeapi.RemoveImageRequest{Image: image}); err != nil {
					t.Errorf("remove: %v", err)
				}
			})
		}
		all.Wait()
	}
}
