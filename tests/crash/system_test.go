package crash

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/tests/node"
)

// contains fails the test unless text has all of the words.
var contains = node.Contains

// TestSystemCheck: what is damaged or left behind is found while pods run, and
// repaired; nothing else is touched.
func TestSystemCheck(t *testing.T) {
	r := newRig(t, node.Options{})
	ctx := t.Context()
	before := r.warm()
	p := r.newPod(sleeper)
	r.must("up", p.up(ctx))
	out, err := r.Subpod("system", "check")
	r.must("check of a whole store", err)
	contains(t, "check", out, "none is left to repair")

	orphan := strings.Repeat("0123456789abcdef", 4)
	r.Enter("sh", "-c", "mkdir -p "+filepath.Join(r.RunDir, "pods", orphan, "shm")+" && mount -t tmpfs tmpfs "+filepath.Join(r.RunDir, "pods", orphan, "shm")+
		" && mkdir -p "+filepath.Join(r.RunDir, "containers", orphan)+" "+filepath.Join(r.DataDir, "storage/subpod/rootfs", orphan))
	r.must("pull", r.pull(ctx, pulled))
	image, err := r.cri.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: pulled}})
	r.must("image", err)
	r.Enter("sh", "-c", "for f in "+r.DataDir+"/storage/overlay-images/"+image.Image.Id+"/=*; do echo >$f; done")

	out, err = r.Subpod("system", "check")
	if err == nil {
		t.Error("check found nothing wrong")
	}
	contains(t, "check", out, "image "+image.Image.Id, "pod sandbox "+filepath.Join(r.RunDir, "pods", orphan), "root file system "+orphan, "bundle ")
	out, err = r.Subpod("system", "check", "--repair")
	r.must("repair", err)
	contains(t, "repair", out, "(removed)", "none is left to repair")
	out, err = r.Subpod("system", "check")
	r.must("check after the repair: "+out, err)
	_, err = p.exec(ctx, "true")
	r.must("the pod that ran meanwhile", err)
	r.must("pull again", r.pull(ctx, pulled))
	r.must("remove", p.removePod(ctx))
	r.must("all is gone", r.settled(before))
}

func TestSystemPrune(t *testing.T) {
	r := newRig(t, node.Options{})
	ctx := t.Context()
	r.warm()
	p, q := r.newPod(sleeper), r.newPod(sleeper)
	r.must("up", p.up(ctx))
	r.must("up", q.up(ctx))
	r.must("stop", q.stopPod(ctx))
	if out, err := r.Subpod("system", "prune"); err == nil {
		t.Errorf("prune did not ask: %s", out)
	}
	out, err := r.Subpod("system", "prune", "--force")
	r.must("prune", err)
	contains(t, "prune", out, q.podID[:12])
	r.must("the stopped pod", q.gone(ctx))
	if has, err := r.hasImage(ctx, pulled); err != nil || !has {
		t.Errorf("prune without --all took an image with a name: %v", err)
	}
	out, err = r.Subpod("system", "prune", "--force", "--all")
	r.must("prune", err)
	contains(t, "prune --all", out, pulled)
	if has, err := r.hasImage(ctx, busybox); err != nil || !has {
		t.Errorf("prune took an image that a container uses: %v", err)
	}
	_, err = p.exec(ctx, "true")
	r.must("the running pod", err)
	r.must("remove", p.removePod(ctx))
}

// TestSystemReset: nothing is left but the configuration, although files belong to
// users of the node.
func TestSystemReset(t *testing.T) {
	r := newRig(t, node.Options{})
	ctx := t.Context()
	r.warm()
	p := r.newPod([]string{"sh", "-c", "touch /file && chown 1234:1234 /file && mkdir -m 0700 /dir && chown 4321 /dir; " + sleeper[2]})
	r.must("up", p.up(ctx))
	out, err := r.Subpod("system", "reset", "--force")
	r.must("reset", err)
	contains(t, "reset", out, "the daemon is stopped", "removed "+r.DataDir, "removed "+r.RunDir)
	for _, dir := range []string{r.DataDir, r.RunDir} {
		if _, err := os.Lstat(dir); !os.IsNotExist(err) {
			t.Errorf("%s: %v", dir, err)
		}
	}
	if err := r.Wait(converge); err != nil {
		t.Errorf("the daemon: %v", err)
	}
	out, err = r.Subpod("system", "reset", "--force")
	r.must("again: "+out, err)
	r.Run() // from nothing
	r.must("pull", r.pull(ctx, busybox))
	p = r.newPod(sleeper)
	r.must("up", p.up(ctx))
	r.must("remove", p.removePod(ctx))
}
