package storage

import (
	"context"
	"errors"
	"path/filepath"
	"testing"
)

// TestConfigHome: configuration is where $XDG_CONFIG_HOME says, if that is an absolute
// path, and without a policy there the one in the usual place counts.
func TestConfigHome(t *testing.T) {
	const accept, reject = `{"default":[{"type":"insecureAcceptAnything"}]}`, `{"default":[{"type":"reject"}]}`
	f := startFake(t, sample(t, "xdg"), nil)
	for _, c := range []struct {
		name, xdg  string
		conf       string            // directory of registries.conf, below the home
		policies   map[string]string // by directory
		wantReject bool
	}{
		{"set", "/xdg", "xdg", map[string]string{"xdg": reject}, true},
		{"policy in the usual place", "/xdg", "xdg", map[string]string{".config": reject}, true},
		{"policy in both", "/xdg", "xdg", map[string]string{"xdg": accept, ".config": reject}, false},
		{"empty", "", ".config", map[string]string{".config": reject}, true},
		{"relative", "xdg", ".config", map[string]string{"xdg": reject, ".config": accept}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := testOptions(t, t.TempDir(), DriverFuse)
			o.RegistriesConf, o.PolicyJSON, o.PullTimeout = "", "", patience
			o.Home = t.TempDir()
			t.Chdir(o.Home)
			if filepath.IsAbs(c.xdg) {
				c.xdg = o.Home + c.xdg
			}
			t.Setenv("XDG_CONFIG_HOME", c.xdg)
			writeFile(t, filepath.Join(o.Home, c.conf, "containers", "registries.conf"), "[[registry]]\nlocation = \""+f.host+"\"\ninsecure = true\n")
			for dir, policy := range c.policies {
				writeFile(t, filepath.Join(o.Home, dir, "containers", "policy.json"), policy)
			}
			s := openStore(t, o)
			_, err := s.Images.Pull(context.Background(), PullRequest{Ref: f.host + "/app:v1"})
			if c.wantReject && !errors.Is(err, ErrSignature) || !c.wantReject && err != nil {
				t.Errorf("the pull ended with %v, rejected by policy: want %t", err, c.wantReject)
			}
		})
	}
}
