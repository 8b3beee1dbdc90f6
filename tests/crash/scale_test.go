package crash

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"testing"

	"golang.org/x/sync/errgroup"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/tests/node"
)

var scalePods = flag.Int("scale", 500, "pods of the scale test (with -short 40)")

// TestScale brings many pods up, lists them, restarts the server among them, and takes
// them down. What the number costs is measured by TestBenchScale ('make bench').
func TestScale(t *testing.T) {
	count := *scalePods
	if testing.Short() {
		count = min(count, 40)
	}
	r := newRig(t, node.Options{Config: "[daemon]\nlog_level = \"warn\"\n"})
	before := r.warm()
	ctx := t.Context()
	var pods []*pod
	for range count {
		p := r.newPod(nil)
		p.container.Image.Image = pulled
		r.must("run", p.run(ctx))
		r.must("create", p.create(ctx))
		r.must("start", p.start(ctx))
		pods = append(pods, p)
	}
	r.must("all are listed", r.listed(ctx, count))
	for range 3 {
		old := r.Server()
		r.KillServer()
		eventually(t, "another server answers", converge, func() error {
			_, err := r.cri.Version(ctx, &runtimeapi.VersionRequest{})
			if err == nil && r.Child("subpod-server") == old {
				err = errors.New("the old one still does")
			}
			return err
		})
		r.must("all are listed after a restart", r.listed(ctx, count))
	}
	for _, p := range pods {
		r.must("after the restarts", p.isState(ctx, running))
	}
	s, err := r.sample()
	r.must("measure", err)
	t.Logf("with %d pods: %+v", count, s)
	var group errgroup.Group
	group.SetLimit(4)
	for _, p := range pods {
		group.Go(func() error { return p.removePod(ctx) })
	}
	r.must("remove", group.Wait())
	r.must("none is listed", r.listed(ctx, 0))
	r.must("all is gone", r.settled(before))
}

// listed checks the lists that a kubelet asks for all the time.
func (r *rig) listed(ctx context.Context, want int) error {
	pods, err := r.cri.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return err
	}
	containers, err := r.cri.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil {
		return err
	}
	stats, err := r.cri.ListContainerStats(ctx, &runtimeapi.ListContainerStatsRequest{})
	if err != nil {
		return err
	}
	if len(pods.Items) != want || len(containers.Containers) != want || len(stats.Stats) != want {
		return fmt.Errorf("%d pods, %d containers and statistics of %d; want %d of each",
			len(pods.Items), len(containers.Containers), len(stats.Stats), want)
	}
	return nil
}
