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
	"ErrNoTun": ErrNoTun, "ErrMissingProgram": ErrMissingProgram, "ErrBadUplink": ErrBadUplink,
}

// preflightPart spoils the namespaces that it is started in, and prints what
// Preflight finds. Arguments: RUNDIR [no-tun] [no-userns] [no-new-privs].
func preflightPart(args []string) int {
	for _, spoil := range args[1:] {
		var err error
		switch spoil {
		case "no-tun":
			err = unix.Mount("tmpfs", "/dev/net", "tmpfs", 0, "")
		case "no-userns":
			err = os.WriteFile("/proc/sys/user/max_user_namespaces", []byte("0"), 0)
		case "no-new-privs":
			err = unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, spoil, err)
			return 1
		}
	}
	err := Preflight(Config{RunDir: args[0], DataDir: args[0], Server: []string{"server"}})
	for name, sentinel := range preflightSentinels {
		if errors.Is(err, sentinel) {
			fmt.Println(name)
		}
	}
	fmt.Println(err)
	return 0
}

// preflight runs it with the given environment, as an unknown user (uid 54321)
// with the capabilities to spoil its own namespaces if spoil says so.
func preflight(t *testing.T, env []string, spoil ...string) string {
	t.Helper()
	cmd := exec.Command(executable(t), append([]string{"part-preflight", t.TempDir()}, spoil...)...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stderr = os.Stderr
	if len(spoil) > 0 && spoil[0] != "no-new-privs" {
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
	if out := preflight(t, nil); out != "<nil>\n" {
		t.Fatalf("this host should do, but Preflight says %s", out)
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
		{"no tun device", nil, []string{"no-tun"}, []string{"ErrNoTun\n", "sudo modprobe tun"}},
		{"no user namespaces", nil, []string{"no-userns"},
			[]string{"ErrNoUserNS\n", "user.max_user_namespaces is 0", "sudo sysctl --system"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			out := preflight(t, c.env, c.spoil...)
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
	want := "sudo tee /etc/apparmor.d/usr.local.bin.subpod <<'EOF'\nabi <abi/4.0>,\ninclude <tunables/global>\n\n" +
		"profile usr.local.bin.subpod /usr/local/bin/subpod flags=(unconfined) {\n  userns,\n}\nEOF\n" +
		"sudo apparmor_parser -r /etc/apparmor.d/usr.local.bin.subpod"
	if got := apparmorFix("/usr/local/bin/subpod"); got != want {
		t.Errorf("AppArmor profile:\n%s\nwant:\n%s", got, want)
	}
}

// An unknown name falls back from getsubids to the files, and finds nothing.
func TestSubIDSources(t *testing.T) {
	if got := rangesOf([]string{"sp-no-such-user"}, "/etc/subuid"); got != nil {
		t.Errorf("ranges of nobody: %v", got)
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "subuid")
	if err := os.WriteFile(file, []byte("54321:400000:65536\nsp-x:500000:10\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir) // no getsubids
	if got := fmt.Sprint(rangesOf([]string{"sp-x", "54321"}, file)); got != "[{400000 65536} {500000 10}]" {
		t.Errorf("by name and uid from the file: %s", got)
	}
	script := "#!/bin/sh\n[ \"$1 $2\" = \"-g ldap\" ] && echo '0: ldap 600000 65536'\n"
	if err := os.WriteFile(filepath.Join(dir, "getsubids"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(rangesOf([]string{"ldap", "7"}, file, "-g")); got != "[{600000 65536}]" {
		t.Errorf("by getsubids: %s", got)
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
	if _, err := c.resolve(); !errors.Is(err, ErrBadUplink) || !strings.Contains(err.Error(), `["slirp4netns" "pasta" "none"]`) {
		t.Errorf("unknown uplink: %v", err)
	}
}
