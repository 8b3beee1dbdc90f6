package attack

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/tests/leak"
	"github.com/subpod/subpod/tests/node"
)

// TestReserved: what a pod's author writes into labels and annotations, and a kubelet
// or play passes on, does not steer the server.
func TestReserved(t *testing.T) {
	c := newCage(t)
	for key, value := range map[string]string{
		"subpod.io/when-done": "remove", "subpod.io/network": "none", "subpod.io/user": "0", "subpod.io/sub-paths": `{"/attack":"../../../../.."}`,
		"subpod.io/run-id": "1", "subpod.io/made-by": "run",
	} {
		m := map[string]string{key: value}
		meta := &runtimeapi.PodSandboxMetadata{Name: strings.ReplaceAll(key, "/", "-"), Namespace: "tests", Uid: "u"}
		for what, config := range map[string]*runtimeapi.PodSandboxConfig{
			"annotation": {Metadata: meta, Annotations: m}, "label": {Metadata: meta, Labels: m},
		} {
			pod, err := c.cri.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: config})
			if status.Code(err) != codes.InvalidArgument {
				t.Errorf("%s %s is taken from any client: %v", what, key, err)
				_, _ = c.cri.RemovePodSandbox(t.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: pod.GetPodSandboxId()})
			}
		}
		manifest := filepath.Join(c.n.Dir, "pod.yaml")
		text := "apiVersion: v1\nkind: Pod\nmetadata: {name: p, annotations: {" + key + ": '" + value + "'}}\nspec: {restartPolicy: Never, containers: [{name: c, image: " + node.Busybox + ", command: ['true']}]}\n"
		if err := os.WriteFile(manifest, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := c.n.Subpod("play", manifest); err == nil || !strings.Contains(err.Error(), "reserved") {
			t.Errorf("play takes %s from a manifest: %s, %v", key, out, err)
		}
	}
	pod, err := c.cri.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: &runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Name: "p", Namespace: "tests", Uid: "u"}}})
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.cri.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: pod.PodSandboxId, Config: &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "c"}, Image: &runtimeapi.ImageSpec{Image: node.Busybox}, Annotations: map[string]string{"subpod.io/user": "0"},
	}})
	if status.Code(err) != codes.InvalidArgument {
		t.Errorf("a container's user is taken from any client: %v", err)
	}
}

// TestUplinkIsConfined: the program that reads what containers send to the outside has
// a seccomp filter, whatever they can make of it.
func TestUplinkIsConfined(t *testing.T) {
	n := node.Start(t, node.Options{Config: "[node]\nuplink = \"slirp4netns\"\n"})
	found := false
	for _, p := range leak.Descendants(n.PID()) {
		dir := "/proc/" + strconv.Itoa(p.PID)
		comm, _ := os.ReadFile(dir + "/comm")
		if strings.TrimSpace(string(comm)) != "slirp4netns" {
			continue
		}
		found = true
		st, err := os.ReadFile(dir + "/status")
		if err != nil || !strings.Contains(string(st), "\nSeccomp:\t2\n") {
			t.Errorf("slirp4netns has no filter: %v\n%s", err, st)
		}
	}
	if !found {
		t.Error("no slirp4netns")
	}
}
