package crash

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/subpod/subpod/tests/node"
)

var (
	randomRuns = flag.Int("random", 500, "kills at random times (with -short a tenth)")
	seed       = flag.Uint64("seed", uint64(time.Now().UnixNano()), "of the random times")
)

// TestKillAtRandom kills the server at random times while pods come and go, four
// at a time; where the node has a monitor of its own, that in turn. Each request is repeated until it is answered well, as a kubelet does.
func TestKillAtRandom(t *testing.T) {
	runs := *randomRuns
	if testing.Short() {
		runs /= 10
	}
	t.Logf("-seed %d", *seed)
	random := rand.New(rand.NewPCG(*seed, 1))
	r := newRig(t, node.Options{})
	before := r.warm()
	var slowest time.Duration
	for i := range runs {
		begin := time.Now()
		kill := time.AfterFunc(time.Duration(random.IntN(120))*time.Millisecond, func() {
			if monitor := r.Child(monitorName); monitor != 0 && i%2 == 1 {
				_ = syscall.Kill(monitor, syscall.SIGKILL)
				return
			}
			r.KillServer()
		})
		var group errgroup.Group
		took := make([]time.Duration, 4)
		for lane := range took {
			p := r.newPod(sleeper)
			group.Go(func() (err error) {
				took[lane], err = p.life(lane == 3)
				return err
			})
		}
		err := group.Wait()
		kill.Stop()
		for _, d := range took {
			slowest = max(slowest, d)
		}
		if err != nil {
			t.Fatalf("run %d: %v", i, err)
		}
		if all := time.Since(begin); all > 2*time.Second {
			t.Logf("run %d took %v, the slowest requests of the pods %v", i, all.Round(time.Millisecond), took)
		}
		if i%25 == 24 || i == runs-1 {
			if err := r.settled(before); err != nil {
				t.Fatalf("run %d: %v", i, err)
			}
		}
	}
	t.Logf("%d kills, slowest answer %v", runs, slowest.Round(time.Millisecond))
}

// life brings a pod up and down by requests that are repeated, and returns how
// long the slowest took.
func (p *pod) life(withImage bool) (slowest time.Duration, err error) {
	steps := []func(context.Context) error{p.run, p.create,
		func(ctx context.Context) error { return startedOrTold(p, ctx) },
		p.stop, p.remove, p.stopPod, p.removePod, p.gone}
	if withImage {
		steps = append(steps,
			func(ctx context.Context) error { return p.r.removeImage(ctx, pulled) },
			func(ctx context.Context) error { return p.r.pull(ctx, pulled) })
	}
	for i, step := range steps {
		took, err := again(step)
		slowest = max(slowest, took)
		if err != nil {
			return slowest, fmt.Errorf("request %d: %w", i, err)
		}
	}
	return slowest, nil
}
