package crash

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"slices"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/tests/node"
)

var scalePods = flag.Int("scale", 500, "pods of the scale test (with -short 40)")

const (
	// compared is how many pods at the beginning and at the end are.
	compared = 10
	// rest is how long each of these waits for what starting the one before it has
	// left to do (the kernel takes apart mount namespaces, conmon starts to wait).
	rest = 100 * time.Millisecond
)

// TestScale brings many pods up, one after the other, and measures what the number
// costs: the next pod, the lists that a kubelet asks for, a restart of the server.
func TestScale(t *testing.T) {
	count := *scalePods
	if testing.Short() {
		count = min(count, 40)
	}
	r := newRig(t, node.Options{Config: "[daemon]\nlog_level = \"warn\"\n"})
	before := r.warm()
	ctx := t.Context()
	var pods []*pod
	var runs []time.Duration
	begin := time.Now()
	for i := range count {
		p := r.newPod(nil)
		p.container.Image.Image = pulled
		if i < compared || i >= count-compared {
			time.Sleep(rest)
		}
		at := time.Now()
		r.must("run", p.run(ctx))
		runs = append(runs, time.Since(at))
		r.must("create", p.create(ctx))
		r.must("start", p.start(ctx))
		pods = append(pods, p)
	}
	up := time.Since(begin)
	// Medians: one outlier is another program's doing.
	first, last := median(runs[:compared]), median(runs[count-compared:])
	t.Logf("%d pods up in %.1f s; RunPodSandbox: first ten %v, last ten %v", count, up.Seconds(), first, last)
	// Few pods on a machine that does other work say nothing about time.
	timed := !testing.Short()
	if timed && last > first*3/2 {
		t.Errorf("RunPodSandbox of the last ten took %v, of the first ten %v", last, first)
	}
	for name, call := range r.lists(ctx, count) {
		var took []time.Duration
		for range 200 {
			at := time.Now()
			r.must(name, call())
			took = append(took, time.Since(at))
		}
		slices.Sort(took)
		t.Logf("%s with %d containers: median %v, p99 %v", name, count, took[len(took)/2], took[len(took)*99/100])
		if p99 := took[len(took)*99/100]; timed && p99 > 50*time.Millisecond {
			t.Errorf("%s: p99 %v", name, p99)
		}
	}
	var restarts []time.Duration
	for range 3 {
		old := r.server()
		at := time.Now()
		r.killServer()
		eventually(t, "another server answers", converge, func() error {
			_, err := r.cri.Version(ctx, &runtimeapi.VersionRequest{})
			if err == nil && r.child("subpod-server") == old {
				err = errors.New("the old one still does")
			}
			return err
		})
		restarts = append(restarts, time.Since(at))
	}
	t.Logf("from the kill of the server until the next one answers: %v", restarts)
	if m := median(restarts); timed && m > 2*time.Second {
		t.Errorf("a restart took %v", m)
	}
	for _, p := range []*pod{pods[0], pods[count-1]} {
		r.must("after the restarts", p.isState(ctx, running))
	}
	s, err := r.sample()
	r.must("measure", err)
	t.Logf("with %d pods: %+v", count, s)
	begin = time.Now()
	var group errgroup.Group
	group.SetLimit(4)
	for _, p := range pods {
		group.Go(func() error { return p.removePod(ctx) })
	}
	r.must("remove", group.Wait())
	t.Logf("%d pods down in %.1f s", count, time.Since(begin).Seconds())
	r.must("all is gone", r.settled(before))
}

// lists are the calls that a kubelet makes all the time.
func (r *rig) lists(ctx context.Context, count int) map[string]func() error {
	enough := func(what string, n int, err error) error {
		if err == nil && n < count {
			err = fmt.Errorf("%s: %d of %d", what, n, count)
		}
		return err
	}
	return map[string]func() error{
		"ListPodSandbox": func() error {
			resp, err := r.cri.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
			return enough("pods", len(resp.GetItems()), err)
		},
		"ListContainers": func() error {
			resp, err := r.cri.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
			return enough("containers", len(resp.GetContainers()), err)
		},
		"ListContainerStats": func() error {
			resp, err := r.cri.ListContainerStats(ctx, &runtimeapi.ListContainerStatsRequest{})
			return enough("stats", len(resp.GetStats()), err)
		},
	}
}

func median(all []time.Duration) time.Duration {
	sorted := slices.Sorted(slices.Values(all))
	return sorted[len(sorted)/2]
}
