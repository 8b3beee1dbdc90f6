package container

import (
	"os"
	"path/filepath"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestVolumesBesideMounts: no volume of an image comes to lie on a mount of the pod, also
// where links of the image lead to its place.
func TestVolumesBesideMounts(t *testing.T) {
	root := t.TempDir()
	for _, dir := range []string{"srv/app/data", "var", "run"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, to := range map[string]string{"data": "/srv/app/data", "out": "../../../../srv", "var/run": "/run"} {
		if err := os.Symlink(to, filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		mount, volume string
		want          bool
	}{
		{"/data", "/srv/app/data", false},
		{"/data", "/srv/app", false},
		{"/data/", "/srv/app/data/below", false},
		{"/data/sub", "/srv/app/data", false},
		{"/out/x", "/srv", true}, // the mount comes after it
		{"/out", "/srv", false},
		{"/var/run/secrets/x", "/run", true},
		{"/var/run/secrets/x", "/run/secrets", true},
		{"/var/run/secrets/x", "/run/secrets/x/y", false},
		{"/data", "/srv/app/other", true},
		{"/srv/app", "/srv/app/data", false},
		{"/srv/app/data", "/srv", true},  // the mount comes after it
		{"/srv/app/data", "/data", true}, // it is asked again for what that leads to
		{"/x", "/", false},
		{"/x", "/dev/shm/y", false},
	} {
		if got := volumeFilter([]*runtimeapi.Mount{{ContainerPath: c.mount}}, root)(c.volume); got != c.want {
			t.Errorf("volume %s with a mount on %s: %v, want %v", c.volume, c.mount, got, c.want)
		}
	}
}
