package rootless

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

var preflightSentinels = map[string]error{
	"ErrNoIDMapper": ErrNoIDMapper, "ErrNoSubIDs": ErrNoSubIDs, "ErrNoUserNS": ErrNoUserNS,
	"ErrNoTun": ErrNoTun, "ErrNoFuse": ErrNoFuse, "ErrMissingProgram": ErrMissingProgram, "ErrBadUplink": ErrBadUplink,
}

// preflightPart spoils the namespaces that it is started in, and prints what
// Preflight finds. Arguments: RUNDIR [no-tun] [no-userns].
func preflightPart(args []string) int {
	for _, spoil := range args[1:] {
		var err error
		switch spoil {
		case "no-tun":
			err = unix.Mount("tmpfs", "/dev/net", "tmpfs", 0, "")
		case "no-userns":
			err = os.WriteFile("/proc/sys/user/max_user_namespaces", []byte("0"), 0)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, spoil, err)
			return 1
		}
	}
	c, err := Config{RunDir: args[0], DataDir: args[0], Server: []string{"server"},
		IDMapping: IDsSubordinate, Uplink: UplinkSlirp}.resolve()
	if err == nil {
		err = preflight(ThisHost(), c)
	}
	for name, sentinel := range preflightSentinels {
		if errors.Is(err, sentinel) {
			fmt.Println(name)
		}
	}
	fmt.Println(err)
	return 0
}

// runPreflight runs it with the given environment, as an unknown user (uid 54321)
// with the capabilities to spoil its own namespaces if spoil says so.
func runPreflight(t *testing.T, env []string, spoil ...string) string {
	t.Helper()
	args := append([]string{executable(t), "part-preflight", t.TempDir()}, spoil...)
	if len(spoil) > 0 && spoil[0] == "no-new-privs" {
		// Set before Go starts threads: it is a property of each of them.
		args = append([]string{"setpriv", "--no-new-privs"}, args[:len(args)-1]...)
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stderr = os.Stderr
	if len(spoil) > 0 && args[0] != "setpriv" {
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNS,
			UidMappings: []syscall.SysProcIDMap{{ContainerID: 54321, HostID: os.Getuid(), Size: 1}},
			GidMappings: []syscall.SysProcIDMap{{ContainerID: 54321, HostID: os.Getgid(), Size: 1}},
			AmbientCaps: []uintptr{unix.CAP_SYS_ADMIN, unix.CAP_SYS_RESOURCE},
		}
	}
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("preflight: %v: %s", err, out)
	}
	return string(out)
}

func TestPreflight(t *testing.T) {
	if out := runPreflight(t, nil); out != "<nil>\n" {
		t.Fatalf("this host should do, but preflight says %s", out)
	}
	empty := t.TempDir()
	for _, c := range []struct {
		name  string
		env   []string
		spoil []string
		want  []string
	}{
		{"no programs", []string{"PATH=" + empty}, nil,
			[]string{"ErrNoIDMapper\n", "ErrMissingProgram\n", "newuidmap is not installed", "apt install uidmap", "slirp4netns"}},
		{"not setuid", []string{"PATH=" + fakeMappers(t) + ":" + os.Getenv("PATH")}, nil,
			[]string{"ErrNoIDMapper\n", "neither setuid root", "sudo chmod u+s "}},
		{"no new privileges", nil, []string{"no-new-privs"}, []string{"ErrNoIDMapper\n", "no_new_privs"}},
		{"no subordinate IDs", []string{"USER=sp-nobody", "HOME=/"}, []string{"-"},
			[]string{"ErrNoSubIDs\n", "user sp-nobody (uid 54321) has none in /etc/subuid",
				"    sudo usermod --add-subuids ", " --add-subgids ", " sp-nobody\n"}},
		{"user without a name", []string{"USER=", "HOME="}, []string{"-"},
			[]string{"ErrNoSubIDs\n", "uid 54321 has no name", "getent passwd"}},
		{"range outside the window", []string{"USER=" + os.Getenv("USER"), "HOME=/"}, []string{"-"},
			[]string{"ErrNoSubIDs\n", "is not mapped in the user namespace that we are in already"}},
		{"no tun device", nil, []string{"no-tun"}, []string{"ErrNoTun\n", "--device /dev/net/tun"}},
		{"no user namespaces", nil, []string{"no-userns"},
			[]string{"ErrNoUserNS\n", "user.max_user_namespaces is 0", "sudo sysctl --system"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			out := runPreflight(t, c.env, c.spoil...)
			for _, w := range c.want {
				if !strings.Contains(out, w) {
					t.Errorf("%q is missing in\n%s", w, out)
				}
			}
		})
	}
}

// fakeMappers makes newuidmap and newgidmap that are not setuid.
func fakeMappers(t *testing.T) string {
	dir := t.TempDir()
	for _, name := range []string{"newuidmap", "newgidmap"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func TestFixes(t *testing.T) {
	taken := parseSubIDs(strings.NewReader("a:100000:65536\n# b:1:1\n\nbad\n1000:300000:65536\nc:200000:65536\n"))
	if len(taken) != 3 {
		t.Errorf("parsed %v", taken)
	}
	if got := freeRange(taken); got != 365536 {
		t.Errorf("free range at %d, want 365536", got)
	}
	if got := freeRange(nil); got != 100000 {
		t.Errorf("free range at %d, want 100000", got)
	}
	for _, bad := range [][2]string{{"", "1"}, {"-1", "5"}, {"4294967295", "2"}, {"1", "x"}} {
		if r := parseRange(bad[0], bad[1]); r != (SubIDs{}) {
			t.Errorf("%v parsed as %v", bad, r)
		}
	}
}

// fakeHost is a machine in a directory, with nothing in it.
func fakeHost(t *testing.T) Host {
	root := t.TempDir()
	return Host{Root: root, Path: filepath.Join(root, "bin"), UID: 54321, GID: 54321, Name: "sp-x", RootUID: os.Getuid(),
		UIDMap: []IDMap{{Container: 0, Host: 0, Size: 1<<32 - 1}}, GIDMap: []IDMap{{Container: 0, Host: 0, Size: 1<<32 - 1}}, Executable: "/opt/bin/subpod-node",
		TryUserNS: func() error { return nil }}
}

func (h Host) put(t *testing.T, name, content string, mode os.FileMode) {
	t.Helper()
	path := h.File(name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

// An unknown name falls back from getsubids to the files, and finds nothing.
func TestSubIDSources(t *testing.T) {
	h := fakeHost(t)
	if uids, gids := h.SubordinateIDs(); uids != nil || gids != nil {
		t.Errorf("ranges of nobody: %v, %v", uids, gids)
	}
	h.put(t, "/etc/subuid", "54321:400000:65536\nsp-x:500000:10\n", 0o600)
	if uids, _ := h.SubordinateIDs(); fmt.Sprint(uids) != "[{400000 65536} {500000 10}]" {
		t.Errorf("by name and uid from the file: %v", uids)
	}
	h.put(t, "/bin/getsubids", "#!/bin/sh\n[ \"$1 $2\" = \"-g sp-x\" ] && echo '0: sp-x 600000 65536'\n", 0o755)
	if _, gids := h.SubordinateIDs(); fmt.Sprint(gids) != "[{600000 65536}]" {
		t.Errorf("by getsubids: %v", gids)
	}
}

// What is left to the host comes out as the host is.
func TestResolveAuto(t *testing.T) {
	window := []IDMap{{Container: 0, Host: 100000, Size: 65536}}
	subIDs := func(t *testing.T, h *Host) {
		h.put(t, "/etc/subuid", "sp-x:2000:60000\n", 0o644)
		h.put(t, "/etc/subgid", "sp-x:2000:60000\n", 0o644)
	}
	tun := func(t *testing.T, h *Host) { h.put(t, "/dev/net/tun", "", 0o666) }
	for _, c := range []struct {
		name    string
		change  []func(*testing.T, *Host)
		ids     string
		uplink  string
		reasons string
	}{
		{"nothing on a plain host", nil, IDsSingle, UplinkSlirp, "sudo usermod --add-subuids 100000-165535"},
		{"all there", []func(*testing.T, *Host){subIDs, tun}, IDsSubordinate, UplinkSlirp, ""},
		{"setuid programs without effect", []func(*testing.T, *Host){subIDs, tun, func(t *testing.T, h *Host) {
			h.NoNewPrivs = true
			h.put(t, "/bin/newuidmap", "", 0o755|os.ModeSetuid)
			h.put(t, "/bin/newgidmap", "", 0o755|os.ModeSetuid)
		}}, IDsSingle, UplinkSlirp, "no_new_privs"},
		{"newuidmap is missing: no way round it", []func(*testing.T, *Host){subIDs, tun}, IDsSubordinate, UplinkSlirp, ""},
		{"an ordinary user in a container", []func(*testing.T, *Host){func(t *testing.T, h *Host) {
			h.UIDMap, h.GIDMap = window, window
		}}, IDsSingle, UplinkHost, "/dev/net/tun"},
		{"subordinate IDs outside the container's", []func(*testing.T, *Host){func(t *testing.T, h *Host) {
			h.UIDMap, h.GIDMap = window, window
			h.put(t, "/etc/subuid", "sp-x:100000:65536\n", 0o644)
			h.put(t, "/etc/subgid", "sp-x:100000:65536\n", 0o644)
		}}, IDsSingle, UplinkHost, "is not mapped in the user namespace"},
		{"root of a container", []func(*testing.T, *Host){func(t *testing.T, h *Host) {
			h.UIDMap, h.GIDMap, h.UID = window, window, 0
		}}, IDsOwn, UplinkHost, "root of a user namespace"},
		{"Docker without a tun", []func(*testing.T, *Host){subIDs, func(t *testing.T, h *Host) {
			h.put(t, "/.dockerenv", "", 0o644)
		}}, IDsSubordinate, UplinkHost, "/.dockerenv"},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := fakeHost(t)
			for _, change := range c.change {
				change(t, &h)
			}
			got := Config{IDMapping: IDsAuto, Uplink: UplinkAuto}.resolveAuto(h)
			if got.IDMapping != c.ids || got.Uplink != c.uplink || !strings.Contains(got.IDReason+got.UplinkReason, c.reasons) {
				t.Errorf("IDs %s (%s), uplink %s (%s); want %s, %s, because of %q",
					got.IDMapping, got.IDReason, got.Uplink, got.UplinkReason, c.ids, c.uplink, c.reasons)
			}
		})
	}
}

func TestAppArmor(t *testing.T) {
	h := fakeHost(t)
	h.TryUserNS = func() error { return unix.EPERM }
	if p := h.UserNS(); p != nil {
		t.Errorf("without the restriction: %v", p)
	}
	h.put(t, "/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1\n", 0o644)
	p := h.UserNS()
	if p == nil || !errors.Is(p, ErrNoUserNS) || !strings.Contains(p.Fix, "/opt/bin/subpod doctor --apparmor-profile | sudo tee") {
		t.Errorf("with the restriction: %v", p)
	}
	h.TryUserNS = func() error { return nil }
	if p := h.UserNS(); p != nil {
		t.Errorf("with a profile: %v", p)
	}
}

func TestBadConfig(t *testing.T) {
	good := Config{RunDir: "/run/x", DataDir: "/d", Server: []string{"s"}}
	if _, err := good.resolve(); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*Config){
		"relative run dir": func(c *Config) { c.RunDir = "run" },
		"long run dir":     func(c *Config) { c.RunDir = "/" + strings.Repeat("x", 90) },
		"no server":        func(c *Config) { c.Server = nil },
		"large MTU":        func(c *Config) { c.MTU = 65536 },
		"ID mapping":       func(c *Config) { c.IDMapping = IDsOwn },
		"copy-up of /":     func(c *Config) { c.CopyUp = []string{"/"} },
		"unclean bind":     func(c *Config) { c.Binds = []Bind{{Source: "/a/../b", Target: "/c"}} },
	} {
		c := good
		spoil(&c)
		if _, err := c.resolve(); !errors.Is(err, ErrBadConfig) {
			t.Errorf("%s: %v, want ErrBadConfig", name, err)
		}
	}
	c := good
	c.Uplink = "carrier-pigeon"
	if _, err := c.resolve(); !errors.Is(err, ErrBadUplink) || !strings.Contains(err.Error(), `["auto" "slirp4netns" "pasta" "gvisor-tap-vsock" "none" "host"]`) {
		t.Errorf("unknown uplink: %v", err)
	}
}
