package storage

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// The credentials lie beside the configuration that a content process reads, or are a
// link to elsewhere; it may read neither.
func TestContentReadsNoCredentials(t *testing.T) {
	top, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("XDG_CONFIG_HOME", "")
	own := filepath.Join(top, "home/.config/containers")
	for _, dir := range []string{"home/.config/containers/registries.conf.d", "home/.config/containers/certs.d", "dotfiles", "home/named"} {
		if err := os.MkdirAll(filepath.Join(top, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	named := filepath.Join(own, "named.json")
	for _, file := range []string{filepath.Join(own, "registries.conf"), named, filepath.Join(top, "dotfiles/auth"), filepath.Join(top, "dotfiles/storage.conf")} {
		if err := os.WriteFile(file, []byte("{}"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, target := range map[string]string{"auth.json": "auth", "storage.conf": "storage.conf"} {
		if err := os.Symlink(filepath.Join(top, "dotfiles", target), filepath.Join(own, name)); err != nil {
			t.Fatal(err)
		}
	}
	r := &registries{opts: &Options{Home: filepath.Join(top, "home"), AuthFile: named}}
	paths, err := r.files()
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{filepath.Join(own, "auth.json"), filepath.Join(top, "dotfiles/auth"), named} {
		for _, p := range paths {
			if real, err := filepath.EvalSymlinks(p); err == nil && (secret == p || secret == real || strings.HasPrefix(secret, real+"/")) {
				t.Errorf("%s may be read, by %s", secret, p)
			}
		}
	}
	for _, needed := range []string{filepath.Join(own, "registries.conf"), filepath.Join(own, "registries.conf.d"), filepath.Join(own, "certs.d"), filepath.Join(top, "dotfiles/storage.conf")} {
		if !slices.Contains(paths, needed) {
			t.Errorf("%s may not be read: %v", needed, paths)
		}
	}
}
