package stats

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestLayerThatTakesLong: a writable layer that cannot be measured in time keeps nobody from
// the rest, and is known by what it last took.
func TestLayerThatTakesLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var stuck atomic.Bool
		c := New(Options{Mountpoint: "/", RootfsUsage: func(ctx context.Context, id string) (Usage, error) {
			if strings.HasPrefix(id, "big") && stuck.Load() {
				<-ctx.Done()
				return Usage{}, ctx.Err()
			}
			return Usage{Bytes: 11, Inodes: 12}, nil
		}})
		container := func(id string) Container { return Container{Attributes: &runtimeapi.ContainerAttributes{Id: id}} }
		list := []Container{container("big"), container("small")}
		c.Containers(t.Context(), list)
		stuck.Store(true)
		time.Sleep(time.Hour)
		list = append(list, container("big and new"), container("big and new, too"), container("small and new"))
		pods := []Pod{{Attributes: &runtimeapi.PodSandboxAttributes{Id: "p"}, Containers: list}}
		for what, request := range map[string]func() []*runtimeapi.ContainerStats{
			"containers": func() []*runtimeapi.ContainerStats { return c.Containers(t.Context(), list) },
			"pods":       func() []*runtimeapi.ContainerStats { return c.Pods(t.Context(), pods)[0].Linux.Containers },
			"metrics":    func() []*runtimeapi.ContainerStats { c.Metrics(t.Context(), pods); return nil },
		} {
			begin := time.Now()
			got := request()
			if took := time.Since(begin); took > layerPatience+3*leastPatience {
				t.Errorf("%s: it took %v", what, took)
			}
			for i, s := range got {
				if known := s.WritableLayer.GetUsedBytes().GetValue() == 11; known == strings.HasPrefix(list[i].Attributes.Id, "big and") {
					t.Errorf("%s: %s has %v", what, s.Attributes.Id, s.WritableLayer)
				}
			}
		}
	})
}
