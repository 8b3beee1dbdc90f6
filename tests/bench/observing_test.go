package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/tests/node"
)

const (
	observedRuns = 20  // of a pod's life, on each of two nodes in turns
	observedPods = 100 // that have their statistics read
)

// TestBenchObserving measures what it costs to be observed: a pod's start with metrics and
// without, on two nodes in turns, and the CPU of the server for the statistics of 100
// containers.
func TestBenchObserving(t *testing.T) {
	const config = "[daemon]\nlog_level = \"warn\"\n" + node.Bridge
	ctx := t.Context()
	begin := func(name, config string) *bench {
		n := node.Start(t, node.Options{Config: config})
		n.Crictl("pull", image)
		b := &bench{n: n, cri: n.CRI(), logs: filepath.Join(n.Dir, "logs")}
		if err := b.cycle(ctx, name+"-warm-up", series{}); err != nil {
			t.Fatal(err)
		}
		return b
	}
	nodes := []struct {
		name string
		*bench
		took series
	}{
		{"off", begin("off", config), series{}},
		{"on", begin("on", config+"[metrics]\nlisten = \"unix\"\n"), series{}},
	}
	for i := range observedRuns {
		for j := range nodes {
			n := nodes[(i+j)%len(nodes)]
			if err := n.cycle(ctx, fmt.Sprint(n.name, i), n.took); err != nil {
				t.Fatal(err)
			}
		}
	}
	off, on := nodes[0].took, nodes[1].took
	fmt.Printf("\na pod with one container up, milliseconds, %d runs in turns\n", observedRuns)
	for _, n := range nodes {
		fmt.Printf("  metrics %-4s median %6.1f, quartiles %6.1f to %6.1f\n", n.name, ms(n.took.at(up, .5)), ms(n.took.at(up, .25)), ms(n.took.at(up, .75)))
	}
	fmt.Printf("  on / off %.3f; the quartiles of off are %.3f and %.3f of its median\n", float64(on.at(up, .5))/float64(off.at(up, .5)),
		float64(off.at(up, .25))/float64(off.at(up, .5)), float64(off.at(up, .75))/float64(off.at(up, .5)))

	for _, n := range nodes {
		ids, err := n.many(ctx, observedPods, *concurrency)
		if err != nil {
			t.Fatal(err)
		}
		statistics := func() {
			resp, err := n.cri.ListContainerStats(ctx, &runtimeapi.ListContainerStatsRequest{})
			if err != nil || len(resp.Stats) < observedPods {
				t.Fatalf("%d containers have statistics: %v", len(resp.GetStats()), err)
			}
		}
		statistics()
		fmt.Printf("\nCPU of the server with %d containers, metrics %s\n", observedPods, n.name)
		per := func(what string, calls int, pause time.Duration, call func()) {
			before := cpuOf(t, n.n.Server())
			for range calls {
				time.Sleep(pause)
				call()
			}
			fmt.Printf("  %-46s %6.2f ms\n", what, ms((cpuOf(t, n.n.Server())-before)/time.Duration(calls)))
		}
		per("a second with nothing to do", 10, time.Second, func() {})
		per("a second with one ListContainerStats (goal: 20)", 10, time.Second, statistics)
		per("one of 200 ListContainerStats in a row", 200, 0, statistics)
		if err := n.removeAll(ctx, ids, *concurrency); err != nil {
			t.Fatal(err)
		}
	}
}

// cpuOf returns the time that all threads of a process have had (schedstat).
func cpuOf(t *testing.T, pid int) time.Duration {
	t.Helper()
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil || len(threads) == 0 {
		t.Fatalf("no threads of process %d: %v", pid, err)
	}
	var sum time.Duration
	for _, file := range threads {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // it has ended: a Go program's threads seldom do
		}
		first, _, _ := strings.Cut(string(text), " ")
		ns, err := strconv.ParseInt(first, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		sum += time.Duration(ns)
	}
	return sum
}
