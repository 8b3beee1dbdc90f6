package pod

import (
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/api"
	"github.com/subpod/subpod/pkg/idmap"
)

// ownUsers asks for so many IDs of the node.
func ownUsers(name, size string) *runtimeapi.PodSandboxConfig {
	cfg := podConfig(name, "")
	cfg.Annotations[api.AnnotationOwnIDs] = size
	cfg.Linux = &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
		NamespaceOptions: &runtimeapi.NamespaceOption{UsernsOptions: &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD}},
	}}
	return cfg
}

// TestOwnIDs: of pod sandboxes that are made at the same time each has IDs of its own, until
// the node has no more; those of one that could not be made, or is gone, are free again.
func TestOwnIDs(t *testing.T) {
	r := newRig(t, empty)
	defer r.m.Close()
	r.m.Host.UIDs = []idmap.Map{{Size: 10_001}}
	r.m.Host.GIDs = r.m.Host.UIDs
	var mu sync.Mutex
	made := map[uint32]string{}
	var group sync.WaitGroup
	for i := range 20 {
		group.Go(func() {
			id, err := r.m.RunPod(r.ctx, ownUsers(fmt.Sprint("pod", i), "1000"), "")
			if errors.Is(err, errdefs.ErrResourceExhausted) {
				return
			}
			if err != nil {
				t.Error(err)
				return
			}
			p, err := r.m.State.Pod(id)
			if err != nil {
				t.Error(err)
				return
			}
			users := p.Config.V.Linux.SecurityContext.NamespaceOptions.UsernsOptions
			first := users.Uids[0].HostId
			mu.Lock()
			defer mu.Unlock()
			if other := made[first/1000]; other != "" || first%1000 != 1 || users.Uids[0].Length != 1000 || users.Gids[0].HostId != first {
				t.Errorf("%s has %v, also of %q", id, users, other)
			}
			made[first/1000] = id
		})
	}
	group.Wait()
	if len(made) != 10 {
		t.Errorf("%d pods were made, want 10", len(made))
	}
	if err := r.m.RemovePod(r.ctx, made[3]); err != nil {
		t.Error(err)
	}
	p, err := r.m.State.Pod(made[4])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.m.RunPod(r.ctx, ownUsers(p.Config.V.Metadata.Name, "1000"), ""); !errors.Is(err, ErrNameTaken) {
		t.Errorf("a pod whose name is taken: %v", err)
	}
	if _, err := r.m.RunPod(r.ctx, ownUsers("next", "1000"), ""); err != nil {
		t.Errorf("after one was removed: %v", err)
	}
	if len(r.m.ownIDs.chosen) > 0 {
		t.Errorf("reserved for ever: %v", r.m.ownIDs.chosen)
	}
}

// TestOwnIDsOfAKubelet: ranges of 65536 lie where a kubelet's do, and none has an ID of
// another pod sandbox, whoever has chosen it.
func TestOwnIDsOfAKubelet(t *testing.T) {
	node := []idmap.Map{{Size: 4 * wholeRange}}
	o := &ownIDs{chosen: map[string]idRange{"small": {1, 4096}, "kubelet": {2 * wholeRange, wholeRange}}}
	o.pods = newRig(t, empty).m.State.Pods
	for _, want := range []uint32{wholeRange, 3 * wholeRange} {
		if r, err := o.choose(fmt.Sprint(want), wholeRange, node, node); err != nil || r.first != want {
			t.Errorf("range %v, %v, want %d", r, err, want)
		}
	}
	if r, err := o.choose("third", wholeRange, node, node); !errors.Is(err, ErrNoIDs) {
		t.Errorf("range %v, %v", r, err)
	}
	if r, err := o.choose("small too", 4096, node, node); err != nil || r.first != 4097 {
		t.Errorf("range %v, %v", r, err)
	}
}

// TestBadOwnIDs: what is no number of IDs is an error of the request.
func TestBadOwnIDs(t *testing.T) {
	r := newRig(t, empty)
	defer r.m.Close()
	for _, size := range []string{"", "0", "-1", "x", "4294967296"} {
		if _, err := r.m.RunPod(r.ctx, ownUsers("one", size), ""); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%q: %v", size, err)
		}
	}
	cfg := podConfig("one", "")
	cfg.Annotations[api.AnnotationOwnIDs] = "1000"
	if _, err := r.m.RunPod(r.ctx, cfg, ""); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("without a user namespace: %v", err)
	}
	cfg = ownUsers("one", "1000")
	cfg.Linux.SecurityContext.NamespaceOptions.UsernsOptions.Uids = []*runtimeapi.IDMapping{{HostId: 1, Length: 1000}}
	if _, err := r.m.RunPod(r.ctx, cfg, ""); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("with mappings: %v", err)
	}
}
