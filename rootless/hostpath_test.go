package rootless

import (
	"os"
	"path/filepath"
	"testing"
)

func TestHasOwn(t *testing.T) {
	top, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	home := filepath.Join(top, "home/ann")
	if err := os.MkdirAll(home, 0o755); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(top, "link")
	if err := os.Symlink(home, link); err != nil {
		t.Fatal(err)
	}
	t.Setenv("HOME", link)
	t.Setenv("XDG_RUNTIME_DIR", "/run/user/7")
	for path, want := range map[string]bool{
		"/": true, "/run": true, "/run/user": true, "/tmp": true, "/var/lib/kubelet": true,
		home: false, link: false, filepath.Dir(home): false, filepath.Join(home, "x"): false, "/run/user/7": false, "/run/user/7/bus": false,
	} {
		if got := (&Node{}).HasOwn(path); got != want {
			t.Errorf("%s: %v", path, got)
		}
	}
	t.Setenv("HOME", "/")
	if !(&Node{}).HasOwn("/tmp") {
		t.Error("/tmp is not the node's where the home is /")
	}
}
