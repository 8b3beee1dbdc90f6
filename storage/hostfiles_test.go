package storage

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestFilesOfRoot: what root keeps for itself below /etc and /var/lib does not keep a
// user from pulling, but for a policy that can't be read.
func TestFilesOfRoot(t *testing.T) {
	const open = `{"default":[{"type":"insecureAcceptAnything"}]}`
	reg := startFake(t, sample(t, "root"), nil)
	for _, c := range []struct {
		name  string
		etc   map[string]string // files below /etc by path; a leading "-" closes one to the user
		close []string          // directories below /etc to close
		want  string            // part of the error
	}{
		{name: "lookaside", etc: map[string]string{"containers/policy.json": open}},
		{name: "everything", etc: map[string]string{
			"containers/policy.json":                            open,
			"-containers/registries.conf":                       "not toml",
			"-containers/registries.conf.d/a.conf":              "not toml",
			"containers/registries.d/default.yaml":              "default-docker:\n  lookaside: file:///var/lib/containers/sigstore\n",
			"-containers/registries.d/closed.yaml":              "not yaml: [",
			"docker/certs.d/" + reg.host + "/client.cert":       "not PEM",
			"-docker/certs.d/" + reg.host + "/client.key":       "not PEM",
			"containers/registries.conf.d/unqualified.conf":     "unqualified-search-registries = [\"quay.io\"]\n",
			"-containers/certs.d/" + "other.example" + "/x.crt": "not PEM",
			"-containers/registries.rootless.conf.d/a.conf":     "not toml",
			"-containers/registries.rootless.d/closed.yaml":     "not yaml: [",
			"-containers/certs.rootless.d/other.example/x.crt":  "not PEM",
		}},
		{name: "signatures of the user's", etc: map[string]string{"containers/policy.json": open,
			"../user/home/.local/share/containers/x": ""}, close: []string{"../user/home/.local/share/containers"}},
		{name: "signatures where the user's file says", etc: map[string]string{"containers/policy.json": open,
			"../user/home/.config/containers/registries.d/default.yaml": "default-docker:\n  lookaside: file:///var/lib/containers/sigstore\n"}},
		{name: "directories", etc: map[string]string{
			"containers/policy.json":                open,
			"containers/registries.conf.d/a.conf":   "not toml",
			"containers/registries.d/closed.yaml":   "not yaml: [",
			"containers/certs.d/" + reg.host + "/x": "",
		}, close: []string{"containers/registries.conf.d", "containers/registries.d", "containers/certs.d"}},
		{name: "directories for users", etc: map[string]string{
			"containers/policy.json":                         open,
			"containers/registries.rootless.conf.d/a.conf":   "not toml",
			"containers/registries.rootless.d/closed.yaml":   "not yaml: [",
			"containers/certs.rootless.d/" + reg.host + "/x": "",
		}, close: []string{"containers/registries.rootless.conf.d", "containers/registries.rootless.d", "containers/certs.rootless.d"}},
		{name: "policy", etc: map[string]string{"-containers/policy.json": open}, want: ErrSignature.Error()},
		{name: "perhaps a policy", etc: map[string]string{"containers/policy.json": open}, close: []string{"containers"}, want: ErrSignature.Error()},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := openDir(t)
			home := filepath.Join(dir, "user", "home")
			writeFile(t, filepath.Join(home, ".config/containers/registries.conf.d/test.conf"),
				"[[registry]]\nlocation = \""+reg.host+"\"\ninsecure = true\n")
			writeFile(t, filepath.Join(dir, "etc", "passwd"), "root:x:0:0::/root:/bin/sh\n")
			for path, content := range c.etc {
				name, closed := strings.CutPrefix(path, "-")
				f := writeFile(t, filepath.Join(dir, "etc", name), content)
				if closed {
					chmod(t, f, 0o600)
				}
			}
			for _, d := range c.close {
				chmod(t, filepath.Join(dir, "etc", d), 0o700)
			}
			for _, name := range []string{
				"etc/containers/storage.conf", "etc/containers/auth.json", "etc/containers/containers.conf",
				"share/containers/registries.conf.d/000-shortnames.conf", "share/containers/storage.conf", "share/containers/registries.d/x.yaml",
				"run/containers/0/auth.json", "run/secrets/etc-pki-entitlement/x", "root/.config/containers/storage.conf",
			} {
				chmod(t, writeFile(t, filepath.Join(dir, name), "not what it should be: ["), 0o600)
			}
			for _, name := range []string{"lib/containers/sigstore/x", "lib/containers/cache/blob-info-cache-v1.boltdb", "lib/containers/storage/x"} {
				writeFile(t, filepath.Join(dir, name), "")
			}
			for _, name := range []string{"lib/containers", "run/containers", "root"} {
				chmod(t, filepath.Join(dir, name), 0o700)
			}
			chownAll(t, filepath.Join(dir, "user"))
			for _, d := range c.close { // also what root has left in the user's home
				if err := os.Chown(filepath.Join(dir, "etc", d), 0, 0); err != nil {
					t.Fatal(err)
				}
			}
			t.Setenv("TMPDIR", filepath.Join(dir, "root"))
			t.Setenv("XDG_RUNTIME_DIR", filepath.Join(dir, "user"))
			if c.name == "directories" {
				t.Setenv("XDG_RUNTIME_DIR", "") // root's is /run/containers/0
			}
			if c.name == "everything" {
				t.Setenv("XDG_RUNTIME_DIR", filepath.Join(dir, "lib", "containers"))
			}
			order := childOrder{
				Options: Options{Root: filepath.Join(dir, "user", "root"), RunRoot: filepath.Join(dir, "user", "run"),
					Driver: DriverVFS, Home: home},
				Pull: reg.host + "/app:1",
				Binds: map[string]string{"/etc": filepath.Join(dir, "etc"), "/var/lib": filepath.Join(dir, "lib"), "/root": filepath.Join(dir, "root"),
					"/usr/share": filepath.Join(dir, "share"), "/run": filepath.Join(dir, "run")},
			}
			said := runOrder(t, order)
			if c.want == "" && said != "ready" || !strings.Contains(said, c.want) {
				t.Errorf("the pull ended with %q, want %q", said, c.want)
			}
		})
	}
}

// TestAdditionalStoreOfRoot: a store that can be seen but not read is left out.
func TestAdditionalStoreOfRoot(t *testing.T) {
	dir := openDir(t)
	other, unlocked := filepath.Join(dir, "other"), filepath.Join(dir, "unlocked")
	for _, name := range []string{"overlay-images/images.json", "overlay-layers/layers.json"} {
		writeFile(t, filepath.Join(unlocked, name), "[]")
	}
	writeFile(t, filepath.Join(other, "overlay-images", "images.json"), "[]")
	chmod(t, filepath.Join(other, "overlay-images", "images.json"), 0o600)
	writeFile(t, filepath.Join(other, "overlay-layers", "layers.json"), "[]")
	writeFile(t, filepath.Join(other, "overlay", "x"), "")
	if err := os.MkdirAll(filepath.Join(dir, "user"), 0o755); err != nil {
		t.Fatal(err)
	}
	chownAll(t, filepath.Join(dir, "user"))
	for _, driver := range []string{DriverFuse, DriverVFS} {
		said := runOrder(t, childOrder{
			Options: Options{Root: filepath.Join(dir, "user", driver), RunRoot: filepath.Join(dir, "user", "run"),
				Driver: driver, Home: filepath.Join(dir, "user"), AdditionalStores: []string{other, unlocked}},
			Binds: map[string]string{"/var/lib": dir},
		})
		if said != "ready" {
			t.Errorf("%s: the store did not open: %s", driver, said)
		}
	}
}

// runOrder carries out an order with Binds to its end and returns what the child said.
func runOrder(t *testing.T, order childOrder) string {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), childMode+"="+string(mustJSON(t, order)))
	maps := []syscall.SysProcIDMap{{HostID: hostFirst, Size: 65535}}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER | unix.CLONE_NEWNS, UidMappings: maps, GidMappings: maps,
		Credential: &syscall.Credential{}}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, os.Stderr
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return strings.TrimSpace(out.String())
}

// openDir returns a temporary directory that other users may enter.
func openDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "open")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	chmod(t, dir, 0o755)
	return dir
}

func chmod(t *testing.T, path string, mode os.FileMode) {
	t.Helper()
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

// chownAll gives dir to the user that a child with Binds is.
func chownAll(t *testing.T, dir string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		return errors.Join(err, os.Chown(path, hostFirst, hostFirst))
	})
	if err != nil {
		t.Fatal(err)
	}
}
