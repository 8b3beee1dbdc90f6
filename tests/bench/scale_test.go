package bench

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/tests/node"
)

var scalePods = flag.Int("scale", 200, "pods that TestBenchScale brings up, at least 40")

const (
	// compared is how many pods at the beginning and at the end are compared.
	compared = 10
	// listings is how often each list is asked for.
	listings = 200
)

// Calls that are measured with many pods, beside those of one pod.
const (
	emptyCall = "Version"
	restart   = "kill of the server until the next one answers"
)

// TestBenchScale measures what the number of pods costs: the next pod, the lists that
// a kubelet asks for, a restart of the server, and what is done when nothing is to do. The
// goals are those for 1,000 pods on a machine with nothing else to do.
func TestBenchScale(t *testing.T) {
	config := "[daemon]\nlog_level = \"warn\"\n" + node.Bridge
	if *driver != "" {
		config += fmt.Sprintf("[storage]\ndriver = %q\n", *driver)
	}
	n := node.Start(t, node.Options{Config: config})
	n.Crictl("pull", image)
	b := &bench{n: n, cri: n.CRI(), logs: filepath.Join(n.Dir, "logs")}
	ctx := t.Context()
	if err := b.cycle(ctx, "warm-up", series{}); err != nil {
		t.Fatal(err)
	}
	few, many := series{}, series{}
	if err := b.restarts(ctx, few); err != nil {
		t.Fatal(err)
	}
	count := max(*scalePods, 2*compared)
	var ids []string
	first, last := series{}, series{}
	for i := range count {
		into := series{}
		switch {
		case i < compared:
			into = first
		case i >= count-compared:
			into = last
		}
		r, err := b.up(ctx, fmt.Sprint("scale-", i), into)
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, r.pod)
		if i == compared-1 {
			if err := b.lists(ctx, few, i+1); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := b.lists(ctx, many, count); err != nil {
		t.Fatal(err)
	}
	idle := idleCPU(n.PID())
	if err := b.restarts(ctx, many); err != nil {
		t.Fatal(err)
	}
	if err := b.removeAll(ctx, ids, *concurrency); err != nil {
		t.Fatal(err)
	}
	fmt.Printf("\n%d pods, milliseconds (median; p99)\n  %-46s %20s %20s\n", count, "",
		fmt.Sprintf("%d pods", compared), fmt.Sprintf("%d pods", count))
	row := func(name string, few, many series, goal string) {
		fmt.Printf("  %-46s %9.1f; %9.1f %9.1f; %9.1f   × %.2f%s\n", name, ms(few.at(name, .5)), ms(few.at(name, .99)),
			ms(many.at(name, .5)), ms(many.at(name, .99)), float64(many.at(name, .5))/float64(max(few.at(name, .5), 1)), goal)
	}
	row(runPod, first, last, " (goal: 1.30)")
	row(create, first, last, " (goal: 1.50)")
	row(up, first, last, "")
	row(emptyCall, few, many, "")
	for _, name := range []string{"ListPodSandbox", "ListContainers", "ListContainerStats"} {
		row(name, few, many, " (goal: p99 of 20 ms)")
	}
	row(restart, few, many, " (goal: 1000 ms)")
	fmt.Printf("  %-46s %41.1f %% of a core (goal: 2)\n", "with nothing to do", 100*idle)
}

// lists measures the lists, which must have count entries, and an empty call.
func (b *bench) lists(ctx context.Context, took series, count int) error {
	enough := func(n int, err error) error {
		if err == nil && n < count {
			err = fmt.Errorf("%d of %d are listed", n, count)
		}
		return err
	}
	for name, call := range map[string]func() error{
		emptyCall: func() error {
			_, err := b.cri.Version(ctx, &runtimeapi.VersionRequest{})
			return err
		},
		"ListPodSandbox": func() error {
			resp, err := b.cri.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
			return enough(len(resp.GetItems()), err)
		},
		"ListContainers": func() error {
			resp, err := b.cri.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
			return enough(len(resp.GetContainers()), err)
		},
		"ListContainerStats": func() error {
			resp, err := b.cri.ListContainerStats(ctx, &runtimeapi.ListContainerStatsRequest{})
			return enough(len(resp.GetStats()), err)
		},
	} {
		for range listings {
			if err := took.measure(name, call); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
		}
	}
	return nil
}

// restarts kills the server three times and waits for the next one.
func (b *bench) restarts(ctx context.Context, took series) error {
	for range 3 {
		old := b.n.Server()
		if err := took.measure(restart, func() error {
			b.n.KillServer()
			return b.answered(ctx, old)
		}); err != nil {
			return err
		}
	}
	return nil
}

// version asks by a connection of its own: one that has failed waits a second before it
// tries again.
func (b *bench) version(ctx context.Context) error {
	conn, err := node.Dial(b.n.Socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = runtimeapi.NewRuntimeServiceClient(conn).Version(ctx, &runtimeapi.VersionRequest{})
	return err
}

// answered waits until another server than the old one answers.
func (b *bench) answered(ctx context.Context, old int) error {
	ctx, cancel := context.WithTimeout(ctx, node.Converge)
	defer cancel()
	for {
		err := b.version(ctx)
		if now := b.n.Child("subpod-server"); err == nil && now != 0 && now != old {
			return nil
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		}
	}
}
