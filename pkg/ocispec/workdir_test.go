package ocispec

import (
	"os"
	"path/filepath"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestLinkedWorkingDir: a working directory behind a link that leads nowhere yet is where
// the link leads to, so that the runtime can make it.
func TestLinkedWorkingDir(t *testing.T) {
	for _, c := range []struct{ dir, want string }{
		{"/app", "/srv/app"}, {"/app/sub", "/srv/app/sub"}, {"/rel/x", "/srv/there/x"}, {"/out", "/etc/nowhere"},
		{"/there", "/there"}, {"/there/new", "/srv/there/new"}, {"/missing/x", "/missing/x"}, {"/loop", "/loop"}, {"/file/x", "/file/x"},
		{"/mnt/app", "/mnt/app"}, {"/proc/self/fd/99", "/proc/self/fd/99"}, {"/onto", "/mnt/new"},
	} {
		in := goldenInput(t)
		in.Image.WorkingDir, in.Container.WorkingDir = c.dir, ""
		in.Mounts = append(in.Mounts, &runtimeapi.Mount{ContainerPath: "/mnt", HostPath: t.TempDir()})
		path := func(name string) string { return filepath.Join(in.Rootfs, name) }
		must(t, os.MkdirAll(path("srv/there"), 0o755))
		must(t, os.MkdirAll(path("mnt"), 0o755))
		must(t, os.WriteFile(path("file"), nil, 0o644))
		for name, target := range map[string]string{"app": "/srv/app", "rel": "srv/there", "there": "srv/there", "out": "../../../../../etc/nowhere", "loop": "loop", "mnt/app": "/srv/app", "onto": "mnt/new"} {
			must(t, os.Symlink(target, path(name)))
		}
		out, err := Build(in)
		must(t, err)
		if got := out.Spec.Process.Cwd; got != c.want {
			t.Errorf("%s: %s, want %s", c.dir, got, c.want)
		}
	}
}
