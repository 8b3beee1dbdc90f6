package rootless

import (
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"
)

func TestHostList(t *testing.T) {
	top, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	at := func(name string) string { return filepath.Join(top, name) }
	for _, dir := range []string{"home/.ssh", "home/.cache/x", "home/.config/autostart", "home/bin", "home/work", "home/xdg", "run/subpod", "data", "other/deep"} {
		if err := os.MkdirAll(at(dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(at("home/.bashrc"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", at("other/socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	t.Setenv("HOME", at("home"))
	t.Setenv("XDG_RUNTIME_DIR", at("home/xdg"))
	t.Setenv("SSH_AUTH_SOCK", "")
	list := func(entries ...string) hostList {
		return newHostList(Config{RunDir: at("run/subpod"), DataDir: at("data"), HostPaths: entries}, slog.New(slog.DiscardHandler))
	}
	nothing, all, some := list(), list("/"), list("/", at("home/.cache"), at("home/.ssh"), at("home"))
	for _, c := range []struct {
		path           string
		allowed, named bool // by everything; with entries of its own
	}{
		{at("other"), true, true},
		{at("other/deep"), true, true},
		{at("home/work"), true, true},
		{"/usr", true, true},
		{at("other/socket"), false, false},
		{at("missing"), false, false},
		{at("home/.cache"), false, true},
		{at("home/.cache/x"), false, true},
		{at("home/.bashrc"), false, true}, // the home is an entry, too
		{at("home/.config/autostart"), false, true},
		{at("home/bin"), false, true},
		{at("home/.ssh"), false, false},
		{at("home"), false, false},
		{at("home/xdg"), false, false},
		{at("run"), false, false},
		{at("run/subpod"), false, false},
		{at("data"), false, false},
		{top, false, false},
		{"/", false, false},
		{"/proc/self", false, false},
		{"/tmp", false, false},
		{"/dev", false, false},
		{"/dev/pts", false, false},
		{"/dev/shm", false, false},
	} {
		if nothing.allows(c.path) {
			t.Errorf("an empty list allows %s", c.path)
		}
		if got := all.allows(c.path); got != c.allowed {
			t.Errorf("%s by \"/\": %v", c.path, got)
		}
		if got := some.allows(c.path); got != c.named {
			t.Errorf("%s by its own entry: %v", c.path, got)
		}
	}
	for path, personal := range map[string]bool{"/tmp/tmux-1000": true, "/tmp/.X11-unix": true, "/tmp/ssh-abc/agent.1": true, "/tmp/data": false, "/var/lib": false} {
		if got := all.isPersonal(path); got != personal {
			t.Errorf("%s is personal: %v", path, got)
		}
	}
}
