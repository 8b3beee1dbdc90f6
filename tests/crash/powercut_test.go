package crash

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/state"
	"github.com/subpod/subpod/tests/node"
)

// TestPowerCut: the node loses its power, and the disk a part of what was written to
// it and not written through: files end anywhere, or are empty. The daemon starts in
// every case, says what it knows, and works.
func TestPowerCut(t *testing.T) {
	random := rand.New(rand.NewPCG(*seed, 2))
	t.Logf("-seed %d", *seed)
	r := newRig(t, node.Options{})
	ctx := t.Context()
	r.warm()
	p, done := r.newPod(sleeper), r.newPod([]string{"sh", "-c", "echo last words; exit 9"})
	r.must("up", p.up(ctx))
	r.must("up", done.up(ctx))
	eventually(t, "it ends", converge, func() error { return done.isState(ctx, exited) })
	r.must("the cut", syscall.Kill(r.PID(), syscall.SIGKILL))
	_ = r.Wait(converge)
	intact := r.DataDir + ".intact"
	asRoot(t, "cp", "-a", r.DataDir, intact)

	cut := func(pattern string) func(*testing.T) {
		return func(t *testing.T) { cutFiles(t, r, pattern, random) }
	}
	cases := []struct {
		name   string
		damage func(*testing.T)
		pods   int // listed afterwards at least
	}{
		{"nothing", func(*testing.T) {}, 2},
		{"journal", cut("state.db.journal"), 0},
		{"state", cut("state.db"), 0},
		{"records of pods", func(t *testing.T) { losePods(t, r) }, 0},
		{"list of layers", cut("storage/overlay-layers/layers.json"), 2},
		{"list of images", cut("storage/overlay-images/images.json"), 2},
		{"image configurations", cut("storage/overlay-images/*/*"), 2},
		{"layer data", cut("storage/overlay-layers/*.tar-split.gz"), 2},
		{"records of root file systems", cut("storage/subpod/rootfs/*/record.json"), 2},
		{"image content", func(t *testing.T) { unsynced(t, r) }, 2},
		{"a layer's directory", func(t *testing.T) {
			asRoot(t, "sh", "-c", "rm -rf "+r.DataDir+"/storage/overlay/*/diff")
		}, 2},
		{"locks", cut("storage/overlay-*/*.lock"), 2},
	}
	rounds := 5
	if testing.Short() {
		rounds = 1
	}
	for range rounds {
		for _, c := range cases {
			t.Run(c.name, func(t *testing.T) {
				asRoot(t, "rm", "-rf", r.DataDir)
				asRoot(t, "cp", "-a", intact, r.DataDir)
				c.damage(t)
				r.in(t).afterCut(c.pods)
			})
		}
	}
	asRoot(t, "rm", "-rf", intact)
}

// afterCut starts the daemon and checks what must be so after any cut.
func (r *rig) afterCut(podsAtLeast int) {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), 2*converge)
	defer cancel()
	r.Run()
	pods, err := r.cri.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	r.must("list", err)
	if len(pods.Items) < podsAtLeast {
		r.t.Errorf("%d pods are listed, not %d", len(pods.Items), podsAtLeast)
	}
	for _, s := range pods.Items {
		if s.State != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
			r.t.Errorf("pod sandbox %s is %s", s.Metadata.Name, s.State)
		}
	}
	containers, err := r.cri.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	r.must("list", err)
	for _, c := range containers.Containers {
		if c.State != exited {
			r.t.Errorf("container %s is %s", c.Id, c.State)
		}
	}
	for _, s := range pods.Items {
		_, err := r.cri.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: s.Id})
		r.must("remove what was there", err)
	}
	// An image is whole, or it is not there and can be pulled.
	r.must("pull", r.pull(ctx, busybox))
	p := r.newPod(sleeper)
	r.must("a new pod", p.up(ctx))
	_, err = p.exec(ctx, "sh", "-c", "for f in /bin/*; do [ -s $f ] || exit 1; done")
	r.must("the image's files are whole", err)
	r.must("remove", p.removePod(ctx))
	eventually(r.t, "nothing is left of the pods before the cut", converge, func() error {
		for name := range r.picture() {
			if strings.Contains(name, "/storage/subpod/rootfs/") || strings.Contains(name, "/net/addresses/") {
				return errors.New(name)
			}
		}
		return nil
	})
	r.must("kill", syscall.Kill(r.PID(), syscall.SIGKILL))
	_ = r.Wait(converge)
}

// losePods removes the records of the pods, and leaves those of their containers.
func losePods(t *testing.T, r *rig) {
	t.Helper()
	s, err := state.Open(filepath.Join(r.DataDir, "state.db"), slog.Default())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range s.Pods() {
		err = errors.Join(err, s.DeletePod(p.ID))
	}
	if err := errors.Join(err, s.Close()); err != nil || len(s.Containers()) == 0 {
		t.Fatalf("%d containers are left: %v", len(s.Containers()), err)
	}
}

// cutFiles shortens one of the files, at random: to nothing, or anywhere.
func cutFiles(t *testing.T, r *rig, pattern string, random *rand.Rand) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(r.DataDir, pattern))
	if err != nil || len(files) == 0 {
		t.Fatalf("no files %s: %v", pattern, err)
	}
	for _, f := range files {
		fi, err := os.Lstat(f)
		if err != nil || !fi.Mode().IsRegular() || fi.Size() == 0 {
			continue
		}
		size := int64(0)
		if random.IntN(3) > 0 {
			size = random.Int64N(fi.Size())
		}
		t.Logf("%s: %d of %d bytes", strings.TrimPrefix(f, r.DataDir), size, fi.Size())
		asRoot(t, "truncate", "-s", fmt.Sprint(size), f)
	}
}

// unsynced empties the files of all layers and marks them as a pull does whose
// content has not been written through when the machine goes down.
func unsynced(t *testing.T, r *rig) {
	t.Helper()
	asRoot(t, "sh", "-c", "find "+r.DataDir+"/storage/overlay/*/diff -type f -exec truncate -s 0 {} +")
	asRoot(t, "sh", "-c", "echo 'another-boot 1' >"+r.DataDir+"/storage/subpod/unsynced/mark")
}

// asRoot runs a command as root over the user's subordinate IDs, while no node runs.
func asRoot(t *testing.T, argv ...string) {
	t.Helper()
	cmd := exec.Command("unshare", append([]string{"--map-root-user", "--map-auto"}, argv...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v: %s", argv, err, out)
	}
}
