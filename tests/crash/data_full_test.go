package crash

import (
	"archive/tar"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/subpod/subpod/tests/node"
)

// TestDataFull: a disk that is full during an import into a volume, a commit, and the
// first use of a volume leaves nothing behind, and what was there as it was.
func TestDataFull(t *testing.T) {
	r := newRig(t, node.Options{})
	r.Enter("mount", "-t", "tmpfs", "-o", "size=128m", "tmpfs", r.DataDir)
	r.must("reload", func() error { _, err := r.Subpod("reload"); return err }())
	eventually(t, "the server uses the small disk", converge, func() error {
		_, err := r.TryEnter("test", "-e", filepath.Join(r.DataDir, "state.db"))
		return err
	})
	ctx := t.Context()
	r.must("pull", r.pull(ctx, busybox))
	archive := filepath.Join(r.Dir, "big.tar")
	writeArchive(t, archive, 12<<20)
	subpod := func(args ...string) string {
		t.Helper()
		out, err := r.Subpod(args...)
		r.must(strings.Join(args, " "), err)
		return out
	}
	subpod("volume", "create", "kept")
	subpod("run", "--rm", "-v", "kept:/v", busybox, "sh", "-c", "echo old >/v/file; mkdir /v/dir")
	subpod("run", "-d", "--name", "big", busybox, "sh", "-c", "mkdir /big; dd if=/dev/urandom of=/big/file bs=1M count=12 2>/dev/null; touch /done; sleep 1000")
	eventually(t, "the file is written", converge, func() error { _, err := r.Subpod("exec", "big", "test", "-e", "/done"); return err })
	look := func() string {
		t.Helper()
		return r.Enter("find", filepath.Join(r.DataDir, "volumes"), filepath.Join(r.DataDir, "storage"), "-name", "*.lock", "-o", "-printf", "%P %s %U:%G %m\n")
	}
	left := "truncate -s -4M " + r.DataDir + "/ballast"
	tooBig := func(what string, args ...string) {
		t.Helper()
		// What "run --rm" has left is removed by now.
		eventually(t, "no pod but big is left", converge, func() error {
			out, err := r.Subpod("ps", "-a", "--format", "{{.Names}}")
			if err == nil && strings.Trim(out, "big\n") != "" {
				err = fmt.Errorf("there is %q", out)
			}
			return err
		})
		before := look()
		r.full(left)
		_, err := r.Subpod(args...)
		refused(t, what, err, codes.OK, "no space left", "disk is full")
		r.free()
		eventually(t, what+" leaves nothing", converge, func() error { return differ(before, look()) })
	}
	tooBig("import", "volume", "import", "kept", archive)
	if out := subpod("run", "--rm", "-v", "kept:/v", busybox, "sh", "-c", "cat /v/file; ls /v"); out != "old\ndir\nfile\n" {
		t.Errorf("the volume after an import that failed: %q", out)
	}
	tooBig("commit", "commit", "big", "example.com/full/commit:v1")
	subpod("commit", "big", "example.com/full/commit:v1")
	subpod("rm", "-f", "big")
	subpod("volume", "create", "fresh")
	tooBig("the first use of a volume", "run", "--rm", "-v", "fresh:/big", "example.com/full/commit:v1", "true")
	// With room all of it succeeds.
	subpod("run", "--rm", "-v", "fresh:/big", "example.com/full/commit:v1", "true")
	if out := subpod("run", "--rm", "-v", "fresh:/v", busybox, "stat", "-c", "%s", "/v/file"); out != "12582912\n" {
		t.Errorf("the volume has a file of %q bytes", out)
	}
	eventually(t, "the volume can be removed", converge, func() error { _, err := r.Subpod("volume", "rm", "fresh"); return err })
	subpod("volume", "import", "kept", archive)
}

// differ returns an error that shows the lines which only one of two texts has.
func differ(before, after string) error {
	had, has := strings.Split(before, "\n"), strings.Split(after, "\n")
	var errs []error
	for _, l := range had {
		if !slices.Contains(has, l) {
			errs = append(errs, fmt.Errorf("gone: %s", l))
		}
	}
	for _, l := range has {
		if !slices.Contains(had, l) {
			errs = append(errs, fmt.Errorf("new: %s", l))
		}
	}
	return errors.Join(errs...)
}

// writeArchive writes a tar archive of one file that no file system can compress.
func writeArchive(t *testing.T, name string, size int64) {
	t.Helper()
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	text := make([]byte, size)
	_, _ = rand.Read(text)
	w := tar.NewWriter(f)
	err = w.WriteHeader(&tar.Header{Name: "big", Typeflag: tar.TypeReg, Mode: 0o644, Size: size})
	if err == nil {
		_, err = w.Write(text)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestFilledByContainers: containers that fill the disk, each of which takes what becomes
// free, can be stopped and removed one after the other.
func TestFilledByContainers(t *testing.T) {
	r := small(t, "size=32m")
	ctx := t.Context()
	r.must("pull", r.pull(ctx, busybox))
	greedy := []string{"sh", "-c", "until [ -e /dev/shm/go ]; do usleep 10000; done; while :; do cat /dev/zero >>/fill; usleep 1000; done 2>/dev/null"}
	pods := []*pod{r.newPod(greedy).logsInNode(), r.newPod(greedy).logsInNode(), r.newPod(greedy).logsInNode()}
	for _, p := range pods {
		r.must("up", p.up(ctx))
	}
	for _, p := range pods {
		_, err := p.exec(ctx, "touch", "/dev/shm/go")
		r.must("go", err)
	}
	eventually(t, "the disk is full", converge, func() error {
		if free := strings.TrimSpace(r.Enter("stat", "-f", "-c", "%a", r.DataDir)); free != "0" {
			return fmt.Errorf("%s blocks are free", free)
		}
		return nil
	})
	for _, p := range pods {
		r.must("stop", p.stop(ctx))
		r.must("it has ended", p.isState(ctx, exited))
		r.must("remove", p.removePod(ctx))
	}
	p := r.newPod(sleeper).logsInNode()
	r.must("up, when there is room", p.up(ctx))
	r.must("remove", p.removePod(ctx))
}
