package container

import (
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestMakeHostPath: what is missing is made for a kubelet's containers, and for nobody else.
func TestMakeHostPath(t *testing.T) {
	b := &Builder{Log: slog.New(slog.DiscardHandler)}
	kubelet := map[string]string{labelPodUID: "u"}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(dir+"/nowhere", dir+"/astray"); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, path string
		labels     map[string]string
		err        error
		want       bool
	}{
		{"another client's", dir + "/other", nil, fs.ErrNotExist, false},
		{"another error", dir + "/denied", kubelet, fs.ErrPermission, false},
		{"below a file", dir + "/file/x", kubelet, fs.ErrNotExist, false},
		{"a device", "/dev/no-such-device", kubelet, fs.ErrNotExist, false},
		{"a link that leads nowhere", dir + "/astray", kubelet, fs.ErrNotExist, false},
		{"not absolute", "relative", kubelet, fs.ErrNotExist, false},
		{"a kubelet's", dir + "/a/b", kubelet, fs.ErrNotExist, true},
	} {
		m := &runtimeapi.Mount{HostPath: c.path, ContainerPath: "/x"}
		got, err := b.makeHostPath("c", &runtimeapi.ContainerConfig{Labels: c.labels}, m, c.err)
		if got != c.want || (err == nil) != c.want {
			t.Errorf("%s: %v, %v", c.name, got, err)
		}
		if info, err := os.Stat(c.path); (err == nil && info.IsDir()) != c.want {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}
