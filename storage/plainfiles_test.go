package storage

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestPlainFiles: a configuration file that would keep its reader waiting, or has no end, is
// an error that names it.
func TestPlainFiles(t *testing.T) {
	f := startFake(t, sample(t, "plain"), nil)
	fifo := func(path string) error { return unix.Mkfifo(path, 0o600) }
	zero := func(path string) error { return os.Symlink("/dev/zero", path) }
	null := func(path string) error { return os.Symlink("/dev/null", path) }
	for _, c := range []struct {
		name string
		make func(path string) error
		want error
	}{
		{".config/containers/registries.conf", fifo, ErrConfiguration},
		{".config/containers/registries.conf", zero, ErrConfiguration},
		{".config/containers/registries.conf.d/a.conf", fifo, ErrConfiguration},
		{".config/containers/registries.conf.d/a.conf", null, nil},
		{".config/containers/registries.d/a.yaml", fifo, ErrConfiguration},
		{".config/containers/certs.d/" + f.host + "/ca.crt", fifo, ErrConfiguration},
		{".config/containers/auth.json", fifo, ErrConfiguration},
		{".docker/config.json", fifo, ErrConfiguration},
		{".dockercfg", fifo, ErrConfiguration},
		{"run/containers/auth.json", fifo, ErrConfiguration},
		{".config/containers/policy.json", fifo, ErrSignature},
		{".config/containers/policy.json", zero, ErrSignature},
		{".config/containers/storage.conf", fifo, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := testOptions(t, t.TempDir(), DriverFuse)
			o.RegistriesConf, o.PolicyJSON, o.PullTimeout = "", "", patience
			o.Home = t.TempDir()
			t.Setenv("XDG_RUNTIME_DIR", filepath.Join(o.Home, "run"))
			conf := filepath.Join(o.Home, ".config/containers")
			writeFile(t, filepath.Join(conf, "registries.conf.d/b.conf"), "[[registry]]\nlocation = \""+f.host+"\"\ninsecure = true\n")
			writeFile(t, filepath.Join(conf, "policy.json"), `{"default":[{"type":"insecureAcceptAnything"}]}`)
			writeFile(t, filepath.Join(o.Home, "run", "other"), "")
			path := filepath.Join(o.Home, c.name)
			if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Fatal(err)
			}
			if err := c.make(path); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			s := openStore(t, o)
			_, err := s.Images.Pull(ctx, PullRequest{Ref: f.host + "/app:v1"})
			if !errors.Is(err, c.want) || err != nil && !strings.Contains(err.Error(), path) {
				t.Errorf("the pull ended with %v, want %v that names %s", err, c.want, path)
			}
		})
	}
}
