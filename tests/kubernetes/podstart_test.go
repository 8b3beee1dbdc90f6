package kubernetes

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/subpod/subpod/tests/containerd"
	"github.com/subpod/subpod/tests/node"
)

var podStart = flag.Int("pod-start", 0, "measure how long so many pods take to run, in a cluster")

// startRounds is how often all is measured, each time in the other order.
const startRounds = 2

// A starter is a worker whose pods are measured.
type starter struct {
	name, what string
	image      string
	subpod     *cluster // nil if it is another's
	pki        string   // the control plane's keys
	in         func(argv ...string) (string, error)

	took map[int][]time.Duration // by how many at a time, in ascending order
	all  map[int][]time.Duration // of all of them, by round
	// calls are those that the kubelet makes for the pods that come one at a time, and
	// steps what subpod does in CreateContainer for them, for the same while nothing else
	// happens, and for one without anything of Kubernetes.
	calls               calls
	steps, alone, plain steps
}

// TestPodStart measures pods from their creation to the API server's saying that they run:
// one at a time, four at a time and all at once, on workers of subpod and of a rootless
// containerd, with the same kubelet and the same configuration, in one cluster. Only the
// control plane's own node, which is measured by nothing, has pods of kube-proxy.
func TestPodStart(t *testing.T) {
	if *podStart == 0 {
		t.Skip("a measurement: make bench-kubernetes")
	}
	c := makeNode(t, nodeOptions{expose: []string{"tcp:6443"}, flags: []string{"--node-ip", hostAddress(t)}, noUsers: true}).start()
	c.kubectl("-n", "kube-system", "patch", "daemonset", "kube-proxy", "-p",
		`{"spec":{"template":{"spec":{"nodeSelector":{"node-role.kubernetes.io/control-plane":""}}}}}`)
	c.eventually(func() error { // before there are workers: each looks what comes up after it
		_, err := c.try("-n", "kube-system", "rollout", "status", "daemonset/kube-proxy", "--timeout=10s")
		return err
	})
	starters := c.starters(t)
	a := c.api()
	for _, s := range starters {
		c.nodeReady(s.name)
		a.start(s, "warm", 2, 1)
	}
	for round := range startRounds {
		for _, atOnce := range []int{1, 4, *podStart} {
			for _, s := range starters {
				before := s.callsSoFar(t)
				took, all := a.start(s, fmt.Sprintf("at-%d-%d", atOnce, round), *podStart, atOnce)
				s.took[atOnce] = append(s.took[atOnce], took...)
				s.all[atOnce] = append(s.all[atOnce], all)
				if atOnce == 1 {
					s.calls.add(s.callsSoFar(t), before)
					s.readSteps(t, &s.steps)
				}
			}
		}
		slices.Reverse(starters)
	}
	for _, s := range starters {
		if s.subpod != nil {
			t.Logf("the slowest requests of %s:\n%s", s.what, s.subpod.subpod("system", "trace", "--slowest", "-n", "6"))
		}
		s.startAlone(t, a)
	}
	text := startTable(starters)
	fmt.Print("\n", text)
	must(t, os.WriteFile(filepath.Join(node.Tree(), ".cache/user/podstart.md"), []byte(text), 0o644))
}

// starters makes the workers and joins them.
func (c *cluster) starters(t *testing.T) (all []*starter) {
	join := c.joinFlags()
	for _, driver := range []string{"fuse-overlayfs", "native"} {
		w := makeNode(t, nodeOptions{name: "subpod-" + driver, config: fmt.Sprintf("[storage]\ndriver = %q\n", driver), flags: join, noUsers: true, bare: true})
		w.subpod("pull", busybox)
		w.kubeadm("join", "--config=/etc/kubernetes/subpod/join.yaml")
		all = append(all, &starter{name: w.name, what: "subpod, " + driver, image: busybox, subpod: w,
			in: func(argv ...string) (string, error) { return w.in("", argv...) }})
	}
	if _, err := os.Stat(filepath.Join(containerd.Bin(), "containerd")); err != nil {
		t.Logf("containerd is left out: %v", err)
	} else {
		all = append(all, joinContainerd(t, all[0].subpod))
	}
	for _, s := range all {
		s.pki = filepath.Join(c.DataDir, "kubernetes/pki")
		s.took, s.all = map[int][]time.Duration{}, map[int][]time.Duration{}
	}
	return all
}

const podsPath = "/api/v1/namespaces/default/pods"

// watched is what is used of a watch's event on a pod.
type watched struct {
	Type   string
	Object struct {
		Metadata struct{ Name string }
		Status   struct{ Phase string }
	}
}

// start creates pods with a label on a worker, so many of them at once, waits until each
// runs, and removes them. It returns how long each took, and all of them.
func (a *apiServer) start(s *starter, label string, pods, atOnce int) (took []time.Duration, all time.Duration) {
	a.t.Helper()
	ctx, cancel := context.WithTimeout(a.t.Context(), readyTimeout)
	defer cancel()
	label = s.name + "-" + label
	body, err := a.do(ctx, "GET", podsPath+"?watch=true&labelSelector=bench%3D"+label, nil)
	must(a.t, err)
	defer body.Close()
	events := make(chan watched, 100)
	go func() {
		defer close(events)
		for decoder := json.NewDecoder(body); ; {
			var e watched
			if decoder.Decode(&e) != nil {
				return
			}
			events <- e
		}
	}()
	created := map[string]time.Time{}
	create := func() {
		name := fmt.Sprintf("%s-%d", label, len(created))
		created[name] = time.Now()
		made, err := a.do(ctx, "POST", podsPath, podToStart(s, name, label))
		must(a.t, err)
		made.Close()
	}
	begin := time.Now()
	for range min(atOnce, pods) {
		create()
	}
	running := map[string]bool{}
	for len(took) < pods {
		e, open := <-events
		if !open {
			a.t.Fatalf("the watch ended, %d of %d pods run", len(took), pods)
		}
		name := e.Object.Metadata.Name
		if e.Object.Status.Phase != "Running" || running[name] {
			continue
		}
		running[name] = true
		took = append(took, time.Since(created[name]).Round(time.Millisecond))
		if len(created) < pods {
			create()
		}
	}
	all = time.Since(begin)
	gone, err := a.do(ctx, "DELETE", podsPath+"?labelSelector=bench%3D"+label, nil)
	must(a.t, err)
	gone.Close()
	for left := pods; left > 0; {
		e, open := <-events
		if !open {
			a.t.Fatalf("the watch ended, %d pods are left", left)
		}
		if e.Type == "DELETED" {
			left--
		}
	}
	return took, all
}

func podToStart(s *starter, name, label string) any {
	return map[string]any{
		"apiVersion": "v1", "kind": "Pod",
		"metadata": map[string]any{"name": name, "labels": map[string]any{"bench": label}},
		"spec": map[string]any{
			"terminationGracePeriodSeconds": 1, // without one it is gone before its containers are
			"nodeSelector":                  map[string]any{"kubernetes.io/hostname": s.name},
			"containers": []any{map[string]any{
				"name": "c", "image": s.image, "imagePullPolicy": "IfNotPresent", "command": []string{"sh", "-c", asleep},
			}},
		},
	}
}
