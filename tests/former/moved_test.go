package former

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/subpod/subpod/tests/node"
)

// TestMoved: what docs/install.md tells those to do who move to another host: the data
// directory goes through tar, by the user IDs of the node, and the other host's node has
// all of it: images, volumes, files of containers; what is to be running runs.
func TestMoved(t *testing.T) {
	n := node.Start(t, node.Options{Config: node.Bridge})
	run := func(args ...string) string {
		t.Helper()
		out, err := n.Subpod(args...)
		if err != nil {
			t.Fatalf("subpod %s: %v\n%s", strings.Join(args, " "), err, out)
		}
		return strings.TrimSpace(out)
	}
	run("run", "-d", "--name", "web", "--restart", "always", "-v", "kept:/kept", node.Busybox,
		"sh", "-c", "[ -e /mine ] || { echo mine >/mine; chown 1000:1000 /mine; rm /etc/group; echo kept >/kept/file; }; exec sleep 100000")
	node.Eventually(t, "the container has written", func() error {
		_, err := n.Subpod("exec", "web", "cat", "/kept/file")
		return err
	})
	n.Stop()
	archive := filepath.Join(n.Dir, "moved.tar")
	if out := run("unshare", "tar", "-C", n.DataDir, "--xattrs", "--xattrs-include=*", "--numeric-owner", "-cf", archive, "."); out != "" {
		t.Errorf("tar: %s", out)
	}
	run("unshare", "sh", "-c", "rm -rf "+n.DataDir)
	if _, err := os.Stat(n.DataDir); !os.IsNotExist(err) {
		t.Fatalf("the data directory is still there: %v", err)
	}
	if err := os.MkdirAll(n.DataDir, 0o700); err != nil {
		t.Fatal(err)
	}
	run("unshare", "tar", "-C", n.DataDir, "--xattrs", "--xattrs-include=*", "--numeric-owner", "-xpf", archive)
	n.Run()
	node.Eventually(t, "the container runs again", func() error {
		_, err := n.Subpod("exec", "web", "true")
		return err
	})
	if out := run("exec", "web", "sh", "-c", "cat /mine /kept/file; stat -c %u:%g /mine; ls /etc/group 2>/dev/null || echo removed"); out != "mine\nkept\n1000:1000\nremoved" {
		t.Errorf("the moved container has %q", out)
	}
	run("run", "--rm", "--pull", "never", node.Busybox, "true")
	run("rm", "-f", "web")
	run("volume", "rm", "kept")
}
