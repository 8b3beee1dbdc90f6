package rootless

import (
	"os"
	"path/filepath"
	"testing"
)

// TestMakeHosts: a host without hosts(5), or with a link that leads nowhere, gets an empty
// one in its node; one that is there stays.
func TestMakeHosts(t *testing.T) {
	dir := t.TempDir()
	missing, link, there := filepath.Join(dir, "missing"), filepath.Join(dir, "link"), filepath.Join(dir, "there")
	if err := os.Symlink(filepath.Join(dir, "nowhere", "hosts"), link); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(there, []byte("127.0.0.1 me\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{missing: "", link: "", there: "127.0.0.1 me\n"} {
		if err := makeHosts(file); err != nil {
			t.Error(err)
		}
		if got, err := os.ReadFile(file); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", file, got, err)
		}
	}
}
