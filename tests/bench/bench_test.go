// Package bench measures the daemon over its CRI socket, and in the same run what
// the same container costs by crun alone. Run it by 'make bench'.
package bench

import (
	"cmp"
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/storage"
	"github.com/subpod/subpod/tests/node"
)

var (
	runs        = flag.Int("runs", 30, "how often each call is measured")
	pods        = flag.Int("pods", 30, "pods that run at the same time")
	concurrency = flag.Int("concurrency", 4, "pods that are started at the same time")
	driver      = flag.String("driver", "", "storage driver; empty is the default one")
)

const image = node.Busybox

// workload ends at SIGTERM at once, as the first process of its PID namespace.
var workload = []string{"sh", "-c", "trap 'exit 0' TERM; sleep 1000000 & wait"}

// ownPID is what the kubelet asks for by default.
var ownPID = &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}

func TestMain(m *testing.M) {
	storage.Dispatch() // its own helpers, for pullMain
	if len(os.Args) > 2 && parts[os.Args[1]] != nil {
		if err := parts[os.Args[1]](os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, os.Args[1]+":", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	node.Main(m)
}

// parts are what the test binary can be beside a test, by first argument: an end of a
// measurement, in namespaces made for it.
var parts = map[string]func(args []string) error{
	floorArg: floorMain,
	pullArg:  pullMain,
	echoArg:  func(args []string) error { return echo(args[0]) },
	askArg:   func(args []string) error { return ask(args[0]) },
	traceArg: traceMain,
	agentArg: func(args []string) error { return agentMain(args[0]) },
	relayArg: func(args []string) error { return relayMain(args[0], args[1:]) },
}

func TestBench(t *testing.T) {
	config := "[daemon]\nlog_level = \"warn\"\n"
	if *driver != "" {
		config += fmt.Sprintf("[storage]\ndriver = %q\n", *driver)
	}
	n := node.Start(t, node.Options{Config: config})
	n.Crictl("pull", image)
	b := &bench{n: n, cri: n.CRI(), logs: filepath.Join(n.Dir, "logs")}

	var out strings.Builder
	floor, err := measureFloor(n, *runs)
	if err != nil {
		t.Fatal(err)
	}
	// One to warm up.
	if err := b.cycle(t.Context(), "warm-up", series{}); err != nil {
		t.Fatal(err)
	}
	idle := memory(n)
	took := series{}
	for i := range *runs {
		if err := b.cycle(t.Context(), fmt.Sprintf("one-%d", i), took); err != nil {
			t.Fatal(err)
		}
	}
	fmt.Fprintf(&out, "\n%d runs one after the other, milliseconds\n", *runs)
	took.print(&out, floor)

	begin := time.Now()
	ids, err := b.many(t.Context(), *pods, *concurrency)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(&out, "\n%d pods up at concurrency %d: %.2f s\n", *pods, *concurrency, time.Since(begin).Seconds())
	busy := memory(n)
	fmt.Fprintf(&out, "\nMemory in KiB\n")
	printMemory(&out, idle, busy, *pods)

	begin = time.Now()
	if err := b.removeAll(t.Context(), ids, *concurrency); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(&out, "\n%d pods down at concurrency %d: %.2f s\n", *pods, *concurrency, time.Since(begin).Seconds())
	fmt.Print(out.String())
}

type bench struct {
	n    *node.Node
	cri  node.Client
	logs string
	ref  string // of the image; "" is image
}

func (b *bench) image() string { return cmp.Or(b.ref, image) }

// calls in the order of a pod's life; "pod up" is the sum of the first three.
const (
	runPod    = "RunPodSandbox"
	create    = "CreateContainer"
	start     = "StartContainer"
	up        = "pod with one container up"
	execSync  = "ExecSync true"
	stop      = "StopContainer"
	remove    = "RemoveContainer"
	stopPod   = "StopPodSandbox"
	removePod = "RemovePodSandbox"
	whole     = "whole cycle"
)

// running is a pod with one container.
type running struct{ pod, container string }

func (b *bench) up(ctx context.Context, name string, took series) (r running, err error) {
	sandbox := &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "bench", Uid: name},
		LogDirectory: filepath.Join(b.logs, name), Linux: &runtimeapi.LinuxPodSandboxConfig{
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: ownPID}},
	}
	if err := os.MkdirAll(sandbox.LogDirectory, 0o700); err != nil {
		return r, err
	}
	begin := time.Now()
	err = took.measure(runPod, func() error {
		resp, err := b.cri.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: sandbox})
		r.pod = resp.GetPodSandboxId()
		return err
	})
	if err != nil {
		return r, err
	}
	err = took.measure(create, func() error {
		resp, err := b.cri.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: r.pod, SandboxConfig: sandbox,
			Config: &runtimeapi.ContainerConfig{
				Metadata: &runtimeapi.ContainerMetadata{Name: "c"}, Image: &runtimeapi.ImageSpec{Image: b.image()},
				Command: workload, LogPath: "c.log", Linux: &runtimeapi.LinuxContainerConfig{
					SecurityContext: &runtimeapi.LinuxContainerSecurityContext{NamespaceOptions: ownPID}},
			}})
		r.container = resp.GetContainerId()
		return err
	})
	if err != nil {
		return r, err
	}
	err = took.measure(start, func() error {
		_, err := b.cri.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: r.container})
		return err
	})
	took.add(up, time.Since(begin))
	return r, err
}

func (b *bench) cycle(ctx context.Context, name string, took series) error {
	begin := time.Now()
	r, err := b.up(ctx, name, took)
	if err != nil {
		return err
	}
	for _, step := range []struct {
		name string
		call func() error
	}{
		{execSync, func() error {
			resp, err := b.cri.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: r.container, Cmd: []string{"true"}, Timeout: 10})
			if err == nil && resp.ExitCode != 0 {
				err = fmt.Errorf("true ended with %d", resp.ExitCode)
			}
			return err
		}},
		{stop, func() error {
			_, err := b.cri.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: r.container, Timeout: 10})
			return err
		}},
		{remove, func() error {
			_, err := b.cri.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: r.container})
			return err
		}},
		{stopPod, func() error {
			_, err := b.cri.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: r.pod})
			return err
		}},
		{removePod, func() error {
			_, err := b.cri.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: r.pod})
			return err
		}},
	} {
		if err := took.measure(step.name, step.call); err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
	}
	took.add(whole, time.Since(begin))
	return nil
}

// many starts pods, some at the same time.
func (b *bench) many(ctx context.Context, count, parallel int) (ids []string, err error) {
	var mu sync.Mutex
	var group errgroup.Group
	group.SetLimit(parallel)
	for i := range count {
		group.Go(func() error {
			r, err := b.up(ctx, fmt.Sprintf("many-%d", i), series{})
			mu.Lock()
			defer mu.Unlock()
			ids = append(ids, r.pod)
			return err
		})
	}
	err = group.Wait()
	return ids, err
}

func (b *bench) removeAll(ctx context.Context, ids []string, parallel int) error {
	var group errgroup.Group
	group.SetLimit(parallel)
	for _, id := range ids {
		group.Go(func() error {
			if _, err := b.cri.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: id}); err != nil {
				return err
			}
			_, err := b.cri.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id})
			return err
		})
	}
	return group.Wait()
}
