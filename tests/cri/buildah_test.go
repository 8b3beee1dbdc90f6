package cri

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/subpod/subpod/tests/node"
)

// buildah builds an image of Containerfile lines on top of an empty one that has
// busybox, in the store of the node's user.
func buildah(t *testing.T, n *node.Node, name string, lines ...string) {
	t.Helper()
	dir := filepath.Join(n.Dir, "build")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	copyFile(t, node.Path(t, ".cache/images/busybox"), filepath.Join(dir, "busybox"))
	text := strings.Join(append([]string{
		"FROM scratch", "COPY busybox /bin/busybox", "COPY passwd /etc/passwd",
		`RUN ["/bin/busybox", "--install", "-s", "/bin"]`}, lines...), "\n") + "\n"
	for file, content := range map[string]string{"Containerfile": text, "passwd": "root:x:0:0:root:/root:/bin/sh\n"} {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	cmd := n.Command(t.Context(), "buildah", "--storage-driver", "overlay", "bud", "--isolation", "chroot", "-t", name, dir)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("buildah (package buildah): %v\n%s", err, out)
	}
	// Buildah's own, which it leaves behind.
	if err := os.RemoveAll(fmt.Sprintf("/tmp/containers-user-%d", os.Getuid())); err != nil {
		t.Error(err)
	}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	in, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(out, in); err != nil {
		t.Fatal(err)
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestBuildah: what the user's buildah has built runs here without a registry,
// also when it was built after the daemon's start, and stays buildah's.
func TestBuildah(t *testing.T) {
	for _, driver := range []string{"fuse-overlayfs", "native"} {
		t.Run(driver, func(t *testing.T) {
			n := node.Prepare(t, node.Options{Config: fmt.Sprintf(
				"[storage]\ndriver = %q\nadditional_image_stores = [\"$HOME/.local/share/containers/storage\"]\n", driver)})
			buildah(t, n, "localhost/built:v1", "RUN mkdir -p /home && adduser -D -u 1234 app && echo made by buildah > /home/app/note",
				"USER app", `CMD ["cat", "/home/app/note"]`)
			n.Run()
			expect(t, "images", n.Crictl("images"), "localhost/built", "v1")
			p := runPod(t, n, "built", nil)
			id := p.run("c", nil, obj{"image": obj{"image": "localhost/built:v1"}})
			if s := waitExited(t, n, id).Status; s.ExitCode != 0 {
				t.Errorf("exit code %d", s.ExitCode)
			}
			expect(t, "log", n.Crictl("logs", id), "made by buildah")

			buildah(t, n, "localhost/built:v2", `CMD ["echo", "made while the daemon runs"]`)
			later := p.run("later", nil, obj{"image": obj{"image": "localhost/built:v2"}})
			waitExited(t, n, later)
			expect(t, "log", n.Crictl("logs", later), "made while the daemon runs")

			if _, err := n.TryCrictl("rmi", "localhost/built:v1"); err == nil || !strings.Contains(err.Error(), "read-only store") {
				t.Errorf("removing buildah's image: %v, want an error that names its store", err)
			}
		})
	}
}
