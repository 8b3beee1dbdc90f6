package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/tests/node"
	"github.com/subpod/subpod/tests/registry"
)

// criPeer is a runtime that is driven over its CRI socket.
type criPeer struct {
	*peer
	bench
	pid    func() int                           // the process above all of its processes
	images func(ref string) string              // how the runtime reaches a registry of ours
	inPod  func(t *testing.T, pod string) place // where programs of a pod's network run
	host   string                               // the host's address, as pods see it
	port   int                                  // a host port for a pod
}

func measureSubpod(t *testing.T, driver string, images map[string][]string, floor *peer) *peer {
	registries := registry.Conf(node.Registry(t))
	for _, refs := range images {
		ref := refs[0] // one registry has them all
		addr, _, _ := strings.Cut(ref, "/")
		registries += fmt.Sprintf("[[registry]]\nlocation = %q\ninsecure = true\n", addr)
	}
	n := node.Start(t, node.Options{Registries: registries, Config: node.Bridge + fmt.Sprintf(
		"[daemon]\nlog_level = \"warn\"\n[storage]\ndriver = %q\n[node]\ndisable_host_loopback = false\n", driver)})
	n.Crictl("pull", image)
	p := &criPeer{
		peer:   &peer{Name: "subpod, " + driver, Took: series{}, Ways: map[string]wayTook{}},
		bench:  bench{n: n, cri: n.CRI(), logs: filepath.Join(n.Dir, "logs")},
		pid:    n.PID,
		images: func(ref string) string { return ref },
		inPod:  func(t *testing.T, id string) place { return podPlace{n: n, id: id, subpod: node.Path(t, node.Subpod)} },
		host:   node.HostIPv4(t),
		port:   int(freePorts(t, 4)),
	}
	if floor.Took[floorRun] == nil {
		crun, err := measureFloor(n, *runs)
		if err != nil {
			t.Fatal(err)
		}
		for name, all := range crun {
			floor.Took[name] = all
		}
		net := wayBench{t: t, n: n, took: floor.Ways}
		net.both(wayLoopback, onHost{}, onHost{}, "127.0.0.1", p.port, p.port)
	}
	p.measure(t, images)
	for range *runs {
		if err := p.Took.measure(runRemoved, func() error {
			return quiet(n, node.Path(t, node.Subpod), "run", "--rm", image, "true")
		}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Millisecond)
	}
	p.scale(t, *peerScale)
	return p.peer
}

// measure is what all CRI runtimes go through.
func (p *criPeer) measure(t *testing.T, images map[string][]string) {
	ctx := t.Context()
	if err := p.cycle(ctx, "warm-up", series{}); err != nil {
		t.Fatal(err)
	}
	p.Idle = pssBelow(p.pid())
	for i := range *runs {
		if err := p.cycle(ctx, fmt.Sprint("one-", i), p.Took); err != nil {
			t.Fatal(err)
		}
	}
	begin := time.Now()
	ids, err := p.many(ctx, *pods, *concurrency)
	p.Many = time.Since(begin)
	if err != nil {
		t.Fatal(err)
	}
	p.PodPSS = (pssBelow(p.pid()) - p.Idle) / *pods
	if err := p.removeAll(ctx, ids, *concurrency); err != nil {
		t.Fatal(err)
	}
	p.pulls(t, images)
	p.ways(t)
}

// pulls pulls each image once.
func (p *criPeer) pulls(t *testing.T, images map[string][]string) {
	t.Helper()
	settle(t, os.TempDir())
	var specs []*runtimeapi.ImageSpec
	for name, refs := range images {
		for _, ref := range refs {
			spec := &runtimeapi.ImageSpec{Image: p.images(ref)}
			specs = append(specs, spec)
			unix.Sync()
			if err := p.Took.measure(name, func() error {
				_, err := p.cri.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: spec})
				return err
			}); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, spec := range specs {
		if _, err := p.cri.RemoveImage(t.Context(), &runtimeapi.RemoveImageRequest{Image: spec}); err != nil {
			t.Fatal(err)
		}
	}
}

// ways measures the pods' network. Both pods have a container: some runtimes have no
// network namespace without a process.
func (p *criPeer) ways(t *testing.T) {
	ctx := t.Context()
	var ids []string
	var places []place
	var server string
	for i, port := range []int{p.port, 0} {
		name := fmt.Sprint("net-", i)
		config := &runtimeapi.PodSandboxConfig{
			Metadata: &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "bench", Uid: name},
			Linux:    &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: ownPID}},
		}
		if port != 0 {
			config.PortMappings = []*runtimeapi.PortMapping{{HostPort: int32(port), ContainerPort: wayPort}}
		}
		resp, err := p.cri.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: config})
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, resp.PodSandboxId)
		places = append(places, p.inPod(t, resp.PodSandboxId))
		if port != 0 {
			status, err := p.cri.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: resp.PodSandboxId})
			if err != nil {
				t.Fatal(err)
			}
			server = status.Status.Network.Ip
		}
	}
	net := wayBench{t: t, n: p.n, took: p.Ways}
	net.both(wayPods, places[1], places[0], server, wayPort, wayPort)
	net.both(wayOut, places[1], onHost{}, p.host, p.port+1, p.port+1)
	net.both(wayIn, onHost{}, places[0], "127.0.0.1", wayPort, p.port)
	if err := p.removeAll(ctx, ids, 1); err != nil {
		t.Fatal(err)
	}
}

// scale brings up pods one after the other, all of which go on running, then asks for
// the lists, kills the server and looks what it does without work.
func (p *criPeer) scale(t *testing.T, count int) {
	if count == 0 {
		return
	}
	p.Scale = series{}
	ids, err := p.upOneByOne(t.Context(), count)
	if err == nil && p.n != nil {
		if err = p.lists(t.Context(), p.Scale, count); err == nil {
			err = p.restarts(t.Context(), p.Scale)
		}
		if err == nil {
			p.CPU = idleCPU(p.pid())
		}
	}
	if err != nil {
		t.Errorf("%d pods: %v", len(ids), err)
	}
	if err := p.removeAll(context.WithoutCancel(t.Context()), ids, *concurrency); err != nil {
		t.Error(err)
	}
}

func (p *criPeer) upOneByOne(ctx context.Context, count int) (ids []string, err error) {
	for i := range count {
		into := series{}
		r, err := p.up(ctx, fmt.Sprint("scale-", i), into)
		if r.pod != "" {
			ids = append(ids, r.pod)
		}
		if err != nil {
			return ids, err
		}
		p.Up = append(p.Up, into[up]...)
		for _, name := range []string{runPod, create} {
			p.Scale.add(name, into[name][0])
		}
	}
	return ids, nil
}

// pssBelow is the memory of a process and all below it but the workload, in KiB.
func pssBelow(pid int) (sum int) {
	for kind, u := range memoryBelow(pid) {
		if !strings.HasPrefix(kind, "workload") {
			sum += u.pss
		}
	}
	return sum
}

// netnsOf finds a pod's network namespace in what containerd tells of it.
func netnsOf(t *testing.T, cri node.Client, id string) string {
	t.Helper()
	status, err := cri.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	var info struct {
		RuntimeSpec struct {
			Linux struct {
				Namespaces []struct{ Type, Path string }
			}
		}
	}
	if err := json.Unmarshal([]byte(status.Info["info"]), &info); err != nil {
		t.Fatal(err)
	}
	for _, ns := range info.RuntimeSpec.Linux.Namespaces {
		if ns.Type == "network" && ns.Path != "" {
			return ns.Path
		}
	}
	t.Fatalf("no network namespace of pod %s: %s", id, status.Info["info"])
	return ""
}

// inParallel calls for 0 up to count - 1, parallel at the same time.
func inParallel(count, parallel int, call func(i int) error) error {
	var group errgroup.Group
	group.SetLimit(parallel)
	for i := range count {
		group.Go(func() error { return call(i) })
	}
	return group.Wait()
}
