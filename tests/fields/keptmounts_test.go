package fields

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/subpod/subpod/tests/node"
)

const keptManifest = `
apiVersion: v1
kind: Pod
metadata: {name: kept}
spec:
  terminationGracePeriodSeconds: 0
  volumes: [{name: cache, emptyDir: {medium: Memory}}]
  containers:
  - name: sees
    image: ` + node.Busybox + `
    command: [sh, -c, "trap 'exit 0' TERM; while :; do sleep 0.1; done"]
    volumeMounts: [{name: cache, mountPath: /cache, mountPropagation: HostToContainer}]
  - name: makes
    image: ` + node.Busybox + `
    command: [sh, -c, "trap 'exit 0' TERM; while :; do sleep 0.1; done"]
    securityContext: {privileged: true}
    volumeMounts: [{name: cache, mountPath: /cache, mountPropagation: Bidirectional}]
`

// TestKeptMounts: the mounts of pods are above a private one, which later servers find, and
// containers of one pod mount for each other in a memory volume all the same. One that sees the
// whole node keeps no mount of a pod that is gone.
func TestKeptMounts(t *testing.T) {
	n := node.Start(t, node.Options{})
	n.WriteHome("kept.yaml", keptManifest)
	file := filepath.Join(n.Home, "kept.yaml")
	n.MustSubpod("play", "-d", file)
	pods := filepath.Join(n.RunDir, "pods")
	for _, when := range []string{"at first", "with the next server"} {
		places, below := 0, 0
		for line := range strings.Lines(n.Enter("cat", "/proc/self/mountinfo")) {
			f := strings.Fields(line)
			switch {
			case f[4] == pods:
				places++
			case strings.HasPrefix(f[4], pods+"/"):
				below++
			default:
				continue
			}
			shared := strings.HasPrefix(f[6], "shared:")
			if lower := f[4] == pods && places == 1; shared == lower {
				t.Errorf("%s: shared is %v: %s", when, shared, line)
			}
		}
		if places != 2 || below != 5 {
			t.Errorf("%s: %d mounts on the pods' directory, want 2; %d of the pod, want 5", when, places, below)
		}
		n.KillServer()
		node.Eventually(t, "the next server serves", func() error { _, err := n.Subpod("pods"); return err })
	}
	n.MustSubpod("exec", "kept/makes", "sh", "-c", "mkdir /cache/new && mount -t tmpfs new /cache/new && echo there >/cache/new/file")
	if got := n.MustSubpod("exec", "kept/sees", "cat", "/cache/new/file"); got != "there" {
		t.Errorf("what the other container has mounted has %q", got)
	}
	n.MustSubpod("exec", "kept/makes", "umount", "/cache/new")

	// seen are the pods of which a container that sees the whole node has mounts.
	seen := func(container string) int {
		found := map[string]bool{}
		for line := range strings.Lines(n.MustSubpod("exec", container, "cat", "/proc/self/mountinfo")) {
			if _, below, ok := strings.Cut(line, " /node"+pods+"/"); ok {
				found[strings.FieldsFunc(below, func(r rune) bool { return r == '/' || r == ' ' })[0]] = true
			}
		}
		return len(found)
	}
	n.MustSubpod("run", "-d", "--name", "all", "-v", "/:/node:rslave", node.Busybox, "sleep", "1000")
	if got := seen("all"); got != 2 {
		t.Errorf("mounts of %d pods, want 2", got)
	}
	// With the entries of many pods there, a container is created where others' mounts are not.
	for i := range 100 {
		many := filepath.Join(pods, "many"+strconv.Itoa(i))
		if err := os.Mkdir(many, 0o700); err != nil {
			t.Fatal(err)
		}
		defer os.Remove(many)
	}
	n.MustSubpod("run", "-d", "--name", "one", "--privileged", "-v", "/:/node:rshared", node.Busybox, "sleep", "1000")
	if got := seen("one"); got != 1 {
		t.Errorf("mounts of %d pods in a container that was created among many, want its own pod's", got)
	}
	n.MustSubpod("play", "--down", file)
	if all, one := seen("all"), seen("one"); all != 2 || one != 1 {
		t.Errorf("mounts of %d and %d pods, want those of the two that run, and its own", all, one)
	}
	n.MustSubpod("rm", "-f", "one")
	if got := seen("all"); got != 1 {
		t.Errorf("mounts of %d pods, and one runs", got)
	}
}
