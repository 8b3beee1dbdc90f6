package nri

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"testing"

	"github.com/containerd/nri/pkg/adaptation"
	"github.com/containerd/nri/pkg/api"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/pod"
	"github.com/subpod/subpod/pkg/state"
)

func newPlugins(t *testing.T) *Plugins {
	t.Helper()
	n, err := New(Options{Socket: t.TempDir() + "/nri.sock", Version: "1", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	n.started.Store(true)
	return n
}

// TestTurns: without plugins nobody waits; with them no longer than the request may.
func TestTurns(t *testing.T) {
	n := newPlugins(t)
	n.turn <- struct{}{} // another request talks to a plugin that hangs
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	kept := 0
	must := func(context.Context) error { t.Error("plugins are asked"); return nil }
	if err := n.relayNew(ctx, func() { kept++ }, must); err != nil || kept != 1 {
		t.Errorf("without plugins: %v, kept %d times", err, kept)
	}
	n.count.Store(1)
	if err := n.relayNew(ctx, func() { kept++; cancel() }, must); !errors.Is(err, ErrBusy) || kept != 2 {
		t.Errorf("behind a plugin that hangs: %v, kept %d times", err, kept)
	}
	<-n.turn
	done := errors.New("asked")
	if err := n.relay(t.Context(), func(context.Context) error { return done }); !errors.Is(err, done) {
		t.Errorf("in its turn: %v", err)
	}
	if len(n.turn) != 0 {
		t.Error("the turn is not over")
	}
}

// TestCreating: what is being created is kept until that has ended, and only what plugins
// know is undone.
func TestCreating(t *testing.T) {
	n := newPlugins(t)
	c := state.Container{ID: "c", Config: state.Msg(&runtimeapi.ContainerConfig{})}
	p := state.Pod{ID: "p", Config: state.Msg(&runtimeapi.PodSandboxConfig{})}
	if a, err := n.Adjust(t.Context(), p, c, &specs.Spec{Process: &specs.Process{}}); a != nil || err != nil || len(n.creating) != 1 {
		t.Errorf("without plugins: %v, %v, %d are kept", a, err, len(n.creating))
	}
	var seen []string
	n.options.List = func() ([]state.Pod, []state.Container) {
		p.Status.Phase = state.PodCreating
		return []state.Pod{p}, nil
	}
	sync := func() {
		seen = nil
		err := n.synchronize(t.Context(), func(_ context.Context, pods []*adaptation.PodSandbox, containers []*adaptation.Container) ([]*adaptation.ContainerUpdate, error) {
			for _, p := range pods {
				seen = append(seen, p.Id)
			}
			for _, c := range containers {
				seen = append(seen, c.Id)
			}
			return nil, nil
		})
		if err != nil {
			t.Error(err)
		}
	}
	if sync(); len(seen) != 1 || seen[0] != "c" {
		t.Errorf("a plugin learns of %v, want the container that is being created", seen)
	}
	if err := n.Pod(t.Context(), pod.PodRun, p); err != nil {
		t.Error(err)
	}
	if sync(); len(seen) != 2 {
		t.Errorf("a plugin learns of %v, want the pod sandbox as well", seen)
	}
	if err := errors.Join(n.Container(t.Context(), pod.ContainerUndone, p, c), n.Pod(t.Context(), pod.PodRemove, p)); err != nil || len(n.creating)+len(n.built) != 0 {
		t.Errorf("%v; %d containers and %d pods are kept", err, len(n.creating), len(n.built))
	}
}

// TestLimits: limits are the same after they went to plugins and back.
func TestLimits(t *testing.T) {
	want := &runtimeapi.LinuxContainerResources{
		CpuShares: 2, CpuQuota: -1, CpuPeriod: 100, CpusetCpus: "0", CpusetMems: "1", MemoryLimitInBytes: 5, MemorySwapLimitInBytes: 6,
		HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 7}}, Unified: map[string]string{"io.max": "x"},
	}
	if got := toCRI(fromCRI(want)); !proto.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	empty := &runtimeapi.LinuxContainerResources{}
	if got := toCRI(fromCRI(empty)); !proto.Equal(got, empty) {
		t.Errorf("no limits became %v", got)
	}
	if got := toCRI(&adaptation.LinuxResources{Pids: &api.LinuxPids{Limit: 9}}).Unified["pids.max"]; got != "9" {
		t.Errorf("a limit of processes became %q", got)
	}
}

// TestAdjustment: what changes nothing is nothing, and what the library only takes away in
// the request is found.
func TestAdjustment(t *testing.T) {
	spec := &specs.Spec{Process: &specs.Process{Env: []string{"A=1", "B=2"}}, Mounts: []specs.Mount{{Destination: "/a"}}}
	asked := func(env ...string) *adaptation.Container {
		return &adaptation.Container{Env: env, Mounts: []*adaptation.Mount{{Destination: "/a"}}}
	}
	nothing := &adaptation.ContainerAdjustment{Linux: &adaptation.LinuxContainerAdjustment{Rdt: &api.LinuxRdt{}}}
	if a, err := adjustment(nothing, spec, asked("A=1", "B=2")); a != nil || err != nil {
		t.Errorf("nothing became %v, %v", a, err)
	}
	if a, err := adjustment(nothing, spec, asked("B=3")); err != nil || a == nil || len(a.UnsetEnv) != 1 || a.UnsetEnv[0] != "A" {
		t.Errorf("a variable that was removed: %v, %v", a, err)
	}
	rdt := &adaptation.ContainerAdjustment{Linux: &adaptation.LinuxContainerAdjustment{Rdt: &api.LinuxRdt{ClosId: api.String("x")}}}
	if a, err := adjustment(rdt, spec, asked("A=1", "B=2")); err != nil || a == nil || len(a.LeftOut) != 1 {
		t.Errorf("RDT: %v, %v", a, err)
	}
}

// TestStart: a fresh server reads no specifications for plugins that are not there.
func TestStart(t *testing.T) {
	n := newPlugins(t)
	n.started.Store(false)
	n.options.List = func() ([]state.Pod, []state.Container) {
		t.Error("the records are read")
		return nil, nil
	}
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	if info, err := os.Stat(n.options.Socket); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket: %v, %v", info, err)
	}
}
