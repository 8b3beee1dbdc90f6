package rootless

import (
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// testBroker returns a broker with the default list for a home that it makes.
func testBroker(t *testing.T) (b *broker, home string) {
	t.Helper()
	top, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	home = filepath.Join(top, "home")
	for _, dir := range []string{"home/.ssh", "home/work", "run", "data"} {
		if err := os.MkdirAll(filepath.Join(top, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(filepath.Join(home, ".ssh"), filepath.Join(home, "work/link")); err != nil {
		t.Fatal(err)
	}
	t.Setenv("HOME", home)
	t.Setenv("XDG_RUNTIME_DIR", filepath.Join(top, "run"))
	log := slog.New(slog.DiscardHandler)
	c := Config{RunDir: filepath.Join(top, "run/subpod"), DataDir: filepath.Join(top, "data"), HostPaths: []string{"/"}}
	return &broker{log: log, list: newHostList(c, log), granted: map[string]string{}}, home
}

// A directory for logs is made below the home and /tmp, which are not given as a whole.
func TestBrokerMakesDirectories(t *testing.T) {
	b, home := testBroker(t)
	for name, made := range map[string]bool{
		"logs": true, "new/pod/logs": true, "work/logs": true,
		".logs": false, ".ssh/logs": false, "bin/logs": false, "work/link/logs": false, "../data/logs": false,
	} {
		path := filepath.Join(home, name)
		err := b.makeDir(path)
		_, statErr := os.Stat(path)
		if made && (err != nil || statErr != nil) {
			t.Errorf("%s is not made: %v, %v", name, err, statErr)
		}
		if !made && (!errors.Is(err, ErrNotAllowed) || !errors.Is(statErr, fs.ErrNotExist)) {
			t.Errorf("%s: %v; is it there: %v", name, err, statErr)
		}
	}
}

// Of what the list would give, whoever asks is told that it is not there.
func TestBrokerSaysWhatIsMissing(t *testing.T) {
	b, home := testBroker(t)
	for name, missing := range map[string]bool{"work/missing/x": true, "missing": true, ".ssh/missing": false, ".missing": false, "work/link/missing": false} {
		_, err := b.open(filepath.Join(home, name))
		if errors.Is(err, fs.ErrNotExist) != missing || errors.Is(err, ErrNotAllowed) == missing {
			t.Errorf("%s: %v", name, err)
		}
		if missing && strings.Contains(err.Error(), "host_paths") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
