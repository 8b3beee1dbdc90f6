package config

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/pelletier/go-toml/v2"

	"github.com/subpod/subpod/configs"
)

// TestDefaultNamesEveryField ties the embedded file to the struct: each key is a
// field (or decoding would fail), and each field is a key.
func TestDefaultNamesEveryField(t *testing.T) {
	var file map[string]any
	if err := toml.Unmarshal([]byte(configs.Default), &file); err != nil {
		t.Fatal(err)
	}
	var walk func(typ reflect.Type, table map[string]any, at string)
	walk = func(typ reflect.Type, table map[string]any, at string) {
		if typ.Kind() == reflect.Map {
			if len(table) == 0 {
				t.Errorf("%s: no entry in subpod.toml", at)
			}
			for name, sub := range table {
				walk(typ.Elem(), sub.(map[string]any), at+"."+name)
			}
			return
		}
		names := fieldNames(typ)
		if slices.Contains(names, "") {
			t.Errorf("%s: a field without a toml tag", at)
		}
		for _, name := range names {
			value, ok := table[name]
			if !ok {
				t.Errorf("%s.%s is not in subpod.toml", at, name)
				continue
			}
			if f, _ := field(typ, name); isTable(f.Type) {
				walk(f.Type, value.(map[string]any), at+"."+name)
			}
		}
		if len(table) > len(names) {
			t.Errorf("%s: subpod.toml has keys that are no fields: %v", at, table)
		}
	}
	walk(reflect.TypeFor[Config](), file, "")
	c := Default()
	if p := c.Validate(); len(p) > 0 {
		t.Errorf("the default is not valid: %v", p)
	}
	if c.Streaming.IdleTimeout.Duration != 4*time.Hour || c.Runtime.Handlers["crun"].Path != "crun" {
		t.Errorf("values did not arrive: %+v", c)
	}
}

func write(t *testing.T, name, text string) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestLayers(t *testing.T) {
	dir := t.TempDir()
	file := write(t, dir+"/my.toml", `
daemon.log_level = "debug"
[network]
subnets = ["10.99.0.0/24"]
[runtime.handlers.crun]
args = ["--debug"]
[runtime.handlers."youki"]
path = "/opt/youki"
`)
	write(t, file+".d/20-b.toml", "[images]\npinned = ['b']\nmax_parallel_downloads = 3\n")
	write(t, file+".d/10-a.toml", "[images]\npinned = ['a', 'aa']\n[daemon]\nlog_format = 'json'\n")
	write(t, file+".d/ignored.conf", "nonsense")
	c, err := Load(file, map[string]string{
		"streaming.port": "10250", "images.pull_timeout": "30s", "storage.ignore_chown_errors": "true",
		"node.binds": "/a:/b,/c:/d:ro", "network.cni_bin_dirs": `["/x,y"]`, "daemon.socket": `/run/a "b".sock`,
	})
	if err != nil {
		t.Fatal(err)
	}
	want := Default()
	want.Daemon.LogLevel, want.Daemon.LogFormat = "debug", "json"
	want.Daemon.Socket = `/run/a "b".sock`
	want.Network.Subnets = want.Network.Subnets[:1]
	if err := want.Network.Subnets[0].UnmarshalText([]byte("10.99.0.0/24")); err != nil {
		t.Fatal(err)
	}
	want.Network.CNIBinDirs = []string{"/x,y"}
	// A table is merged: path stays.
	want.Runtime.Handlers["crun"] = Handler{Path: "crun", Args: []string{"--debug"}}
	want.Runtime.Handlers["youki"] = Handler{Path: "/opt/youki"}
	want.Images.Pinned, want.Images.MaxParallelDownloads = []string{"b"}, 3
	want.Images.PullTimeout = Duration{30 * time.Second}
	want.Streaming.Port = 10250
	want.Storage.IgnoreChownErrors = true
	want.Node.Binds = []Bind{{"/a", "/b", false}, {"/c", "/d", true}}
	want.origins = c.origins
	if !reflect.DeepEqual(c, want) {
		t.Errorf("got  %+v\nwant %+v", c, want)
	}
}

// TestProblems: each bad text must be refused at the place and key that it has.
func TestProblems(t *testing.T) {
	cases := []struct{ name, text, want string }{
		{"unknown key", "[daemon]\nsockett = 'x'\n", `:2:1: daemon.sockett: unknown key; did you mean "socket"?`},
		{"case counts", "[daemon]\n  Socket = 'x'\n", `:2:3: daemon.Socket: unknown key; did you mean "socket"?`},
		{"unknown table", "\n[demon]\nx = 1\ny = 2\n", `:2:2: demon: unknown key; did you mean "daemon"?`},
		{"unknown empty table", "[nonsense]\n", `:1:2: nonsense: unknown key`},
		{"unknown dotted", "node.foo.bar = 1\n", `:1:1: node.foo: unknown key`},
		{"unknown in an inline table", "[runtime.handlers]\nkata = { path = 'k',\n  argz = [] }\n", `:3:3: runtime.handlers.kata.argz: unknown key; did you mean "args"?`},
		{"wrong type", "[node]\nmtu = '1500'\n", `:2:1: node.mtu: want a whole number, not a string`},
		{"fraction", "[node]\nmtu = 1500.5\n", `:2:1: node.mtu: want a whole number, not a number with a fraction`},
		{"wrong type in a list", "[images]\npinned = ['a',\n1]\n", `:2:1: images.pinned: want a list of strings, but one element is a whole number`},
		{"table for a value", "[node.mtu]\nx = 1\n", `:1:2: node.mtu: want a whole number, not a table`},
		{"below a value", "node.mtu.x = 1\n", `:1:1: node.mtu.x: node.mtu is a whole number, not a table`},
		{"array of tables", "[[node]]\nmtu = 1500\n", `:1:3: node: want one table, not an array of tables`},
		{"value for a table", "node = 1\n", `:1:1: node: want a table, not a whole number`},
		{"duration without unit", "[streaming]\n\nidle_timeout = 5\n", `:3:1: streaming.idle_timeout: want a duration in quotes such as "90s", not a whole number`},
		{"bad duration", "[streaming]\nidle_timeout = 'soon'\n", `:2:1: streaming.idle_timeout: "soon" is not a duration such as "90s", "5m" or "4h"`},
		{"size without unit", "[images.limits]\nmemory = 5\n", `:2:1: images.limits.memory: want a size in quotes such as "1Gi" (bytes), not a whole number`},
		{"bad size", "[images.limits]\nmemory = 'much'\n", `:2:1: images.limits.memory: "much" is not a number of bytes such as "64Ki", "10M" or "1Gi"`},
		{"small size", "[images.limits]\nmemory = '1Mi'\n", `:2:1: images.limits.memory: 1048576 bytes are not between 268435456 and 1125899906842624`},
		{"many layers", "[images.limits]\nlayers = 501\n", `:2:1: images.limits.layers: 501 is not between 1 and 500`},
		{"bad subnet", "[network]\nsubnets = ['10.0.0.0/33']\n", `:2:1: network.subnets: netip.ParsePrefix("10.0.0.0/33"): prefix length out of range`},
		{"bad bind", "[node]\nbinds = ['/a']\n", `:2:1: node.binds: "/a" is not of the form "SOURCE:TARGET" or "SOURCE:TARGET:ro"`},
		{"number too large", "[node]\nmtu = 99999999999999999999\n", `:2:7: decimal number is too large to fit in a 64-bit signed integer`},
		{"syntax", "[daemon\nsocket = 'x'\n", `:1:8: expected ']' to close table name`},
		{"set twice", "[node]\nmtu = 1500\nmtu = 1501\n", `:3:1: mtu: `},
		{"not UTF-8", "# \xff\n", `:1:3: `},

		{"log level", "[daemon]\nlog_level = 'loud'\n", `:2:1: daemon.log_level: "loud" is not one of debug, info, warn, error`},
		{"no socket", "daemon.socket = ''\n", `:1:1: daemon.socket: must not be empty`},
		{"mtu", "[node]\nmtu = 100\n", `:2:1: node.mtu: 100 is not between 1280 and 65521`},
		{"driver", "storage.driver='zfs'", `:1:1: storage.driver: "zfs" is not one of fuse-overlayfs, native, auto, vfs`},
		{"downloads", "images.max_parallel_downloads=0", `:1:1: images.max_parallel_downloads: 0 is not between 1 and 64`},
		{"bridge name", "network.bridge='a/b'", `:1:1: network.bridge: "a/b" is not an interface name of 1 to 15 printable characters without / and :`},
		{"uplink's IPv6 subnet", "network.subnets=['10.88.0.0/16', 'fd00::/64']", `:1:1: network.subnets: fd00::/64 overlaps fd00::/64, which belongs to the uplink; choose another, or set node.uplink_ipv6 = false`},
		{"uplink's subnet", "network.subnets=['10.0.0.0/8']", `:1:1: network.subnets: 10.0.0.0/8 overlaps 10.0.2.0/24, which belongs to the uplink`},
		{"host bits", "network.subnets=['10.1.2.3/16']", `:1:1: network.subnets: 10.1.2.3/16 has bits set after its prefix; did you mean 10.1.0.0/16?`},
		{"empty subnet", "network.subnets=['']", `:1:1: network.subnets: holds an entry that is not a subnet such as "10.88.0.0/16"`},
		{"two of a family", "network.subnets=['10.1.0.0/16','10.2.0.0/16']", `:1:1: network.subnets: holds more than one subnet of an address family`},
		{"no subnet", "network.subnets=[]", `:1:1: network.subnets: must hold at least one subnet`},
		{"handler", "runtime.default_handler='kata'", `:1:1: runtime.default_handler: "kata" is not one of the handlers crun, runc`},
		{"handler without path", "[runtime.handlers.kata]\nargs=['x']", `:1:2: runtime.handlers.kata.path: must not be empty`},
		{"handler name", "[runtime.handlers.Kata]\npath='x'", `:1:2: runtime.handlers.Kata: "Kata" is not a lower-case DNS label, as a RuntimeClass asks for`},
		{"cgroups", "runtime.cgroup_manager='v1'", `:1:1: runtime.cgroup_manager: "v1" is not one of auto, cgroupfs, systemd, disabled`},
		{"public address", "streaming.address='0.0.0.0'", `:1:1: streaming.address: "0.0.0.0" is not a loopback address such as "127.0.0.1"`},
		{"port", "streaming.port=65536", `:1:1: streaming.port: 65536 is not between 0 and 65535`},
		{"idle", "streaming.idle_timeout='0s'", `:1:1: streaming.idle_timeout: 0s is less than 1s`},
		{"metrics for all", "metrics.listen='0.0.0.0:9464'", `:1:1: metrics.listen: "0.0.0.0:9464" is not "off", "unix", or a loopback address with a port such as "127.0.0.1:9464"`},
		{"metrics on any port", "metrics.listen='127.0.0.1:0'", `:1:1: metrics.listen: "127.0.0.1:0" is not "off"`},
		{"metrics without port", "metrics.listen='::1'", `:1:1: metrics.listen: "::1" is not "off"`},
		{"metrics by name", "metrics.listen='localhost:9464'", `:1:1: metrics.listen: "localhost:9464" is not "off"`},
		{"metrics in a file", "[metrics]\nlisten='/tmp/x.sock'\n", `:2:1: metrics.listen: "/tmp/x.sock" is not "off"`},
		{"expose", "network.expose=['tcp:0']", `:1:1: network.expose: "tcp:0" is neither "auto", "services" nor a port such as "tcp:8080"`},
		{"rate", "network.egress_rate='fast'", `:1:1: network.egress_rate: rate "fast" is not a number of bits per second such as 10M`},
		{"waiting CNI", "network.backend='cni'\nnetwork.wait_for_pod_cidr=true", `:2:1: network.wait_for_pod_cidr: only the built-in bridge waits for it: CNI plugins have subnets of their own`},
		{"isolating CNI", "network.backend='cni'\nnetwork.isolate=true", `:2:1: network.isolate: only the built-in bridge can isolate pods`},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			file := write(t, t.TempDir()+"/subpod.toml", c.text)
			_, err := Load(file, nil)
			var e *Error
			if !errors.Is(err, ErrInvalid) || !errors.As(err, &e) {
				t.Fatalf("got error %v, want an *Error", err)
			}
			if len(e.Problems) != 1 || !strings.HasPrefix(e.Problems[0].String(), file+c.want) {
				t.Errorf("got  %v\nwant %v", err, file+c.want)
			}
		})
	}
}

func TestAllProblemsAtOnce(t *testing.T) {
	dir := t.TempDir()
	file := write(t, dir+"/c.toml", "[daemon]\nx = 1\nlog_level = 3\n[node]\nmtu = true\n")
	drop := write(t, file+".d/1.toml", "[streaming]\nidle_timeout = 'x'\n")
	_, err := Load(file, map[string]string{"a.b": "1", "node.mtu": "many", "daemon": "x", "images.pinned": "[1"})
	var e *Error
	if !errors.As(err, &e) {
		t.Fatal(err)
	}
	var got []string
	for _, p := range e.Problems {
		got = append(got, p.String())
	}
	want := []string{
		file + ":2:1: daemon.x: unknown key",
		file + ":3:1: daemon.log_level: want a string, not a whole number",
		file + ":5:1: node.mtu: want a whole number, not true or false",
		drop + `:2:1: streaming.idle_timeout: "x" is not a duration such as "90s", "5m" or "4h"`,
		"command line: a.b: unknown key",
		"command line: daemon: is a table: set one of its keys",
		"command line: images.pinned: ",
		`command line: node.mtu: want a number, not "many"`,
	}
	if !slices.EqualFunc(got, want, strings.HasPrefix) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	// A value that is wrong only for Validate is blamed on the last who set it.
	write(t, file, "[node]\nmtu = 1\n")
	write(t, drop, "")
	_, err = Load(file, map[string]string{"node.mtu": "2"})
	if err == nil || !strings.Contains(err.Error(), "command line: node.mtu: 2 is not between") {
		t.Errorf("got %v", err)
	}
}

func TestStandardPlaces(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("HOME", dir)
	t.Setenv("XDG_CONFIG_HOME", "")
	if got := Find(os.Getenv); got != "" && got != "/etc/subpod/subpod.toml" {
		t.Errorf("found %s", got)
	}
	if _, err := Load(filepath.Join(dir, "none.toml"), nil); !errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrInvalid) {
		t.Errorf("a named file that is missing: %v", err)
	}
	// A drop-in directory may stand alone in a standard place.
	write(t, dir+"/.config/subpod/subpod.toml.d/1.toml", "node.mtu = 1400\n")
	c, err := Load("", nil)
	if err != nil || c.Node.MTU != 1400 {
		t.Errorf("got %v, %v", c, err)
	}
	write(t, dir+"/xdg/subpod/subpod.toml", "node.mtu = 1450\n")
	t.Setenv("XDG_CONFIG_HOME", dir+"/xdg")
	if c, err = Load("", nil); err != nil || c.Node.MTU != 1450 {
		t.Errorf("got %v, %v", c, err)
	}
	big := write(t, dir+"/big.toml", strings.Repeat("#", maxFile+1))
	if _, err := Load(big, nil); !errors.Is(err, ErrInvalid) {
		t.Errorf("a file that is too large: %v", err)
	}
}

// TestFIFO: a FIFO as the configuration file is refused at once, not waited for.
func TestFIFO(t *testing.T) {
	file := filepath.Join(t.TempDir(), "subpod.toml")
	if err := syscall.Mkfifo(file, 0o600); err != nil {
		t.Fatal(err)
	}
	result := make(chan error, 1)
	go func() {
		_, err := Load(file, nil)
		result <- err
	}()
	select {
	case err := <-result:
		if err == nil || !strings.Contains(err.Error(), "is a FIFO") {
			t.Errorf("Load: %v", err)
		}
	case <-time.After(time.Minute):
		t.Error("Load waits for a writer")
	}
}

func TestResolve(t *testing.T) {
	env := map[string]string{"HOME": "/home/u", "XDG_RUNTIME_DIR": "/run/user/7", "XDG_CONFIG_HOME": "relative/is/ignored", "TOOLS": "/opt/t/"}
	getenv := func(k string) string { return env[k] }
	c := Default()
	c.Runtime.ConmonPath = "$TOOLS/conmon"
	c.Storage.AdditionalImageStores = []string{"~/stores", "${XDG_DATA_HOME}/containers/storage"}
	c.Node.Binds = []Bind{{Source: "~/kubelet", Target: "/var/lib/kubelet/"}}
	c.Runtime.Handlers["x"] = Handler{Path: "~/bin/x"}
	for range 2 { // twice: idempotent
		if err := c.Resolve(getenv); err != nil {
			t.Fatal(err)
		}
	}
	got := []string{c.Daemon.Socket, c.Daemon.DataDir, c.Runtime.ConmonPath, c.Storage.AdditionalImageStores[0],
		c.Storage.AdditionalImageStores[1], c.Node.Binds[0].String(), c.Runtime.Handlers["x"].Path, c.Runtime.Handlers["crun"].Path,
		c.Network.CNIConfDirs[0], c.Images.Policy}
	want := []string{"/run/user/7/subpod/subpod.sock", "/home/u/.local/share/subpod", "/opt/t/conmon", "/home/u/stores",
		"/home/u/.local/share/containers/storage", "/home/u/kubelet:/var/lib/kubelet", "/home/u/bin/x", "crun",
		"/home/u/.config/cni/net.d", ""}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}

	file := write(t, t.TempDir()+"/c.toml", "[daemon]\ndata_dir = '$NOPE/x'\n[images]\npolicy = 'policy.json'\n[runtime]\nconmon_path = 'bin/conmon'\n")
	c, err := Load(file, nil)
	if err != nil {
		t.Fatal(err)
	}
	var e *Error
	if err := c.Resolve(getenv); !errors.As(err, &e) || len(e.Problems) != 3 {
		t.Fatalf("got %v, want three problems", err)
	}
	for i, w := range []string{":2:1: daemon.data_dir: environment variable NOPE is not set",
		`:4:1: images.policy: path "policy.json" is not absolute`, `:6:1: runtime.conmon_path: path "bin/conmon" is not absolute`} {
		if got := e.Problems[i].String(); got != file+w {
			t.Errorf("got  %s\nwant %s", got, file+w)
		}
	}
}

// FuzzDecode: no text makes the decoder panic, hang, or accept what Validate
// cannot take; what is accepted decodes the same in TOML's own decoder.
func FuzzDecode(f *testing.F) {
	f.Add([]byte(configs.Default))
	for _, s := range []string{"[daemon]\nx=1", "node={mtu=1500}", "[[node]]", "runtime.handlers.'a.b'.path='x'\n",
		"[runtime.handlers.\"\\u0007\"]\nargs=[]", "a.b.c=[[1],{x=2}]", "[network]\nsubnets=['::/0',\n#c\n'1.2.3.4/5']"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		c := Default()
		problems := c.decode("f", text)
		for _, p := range problems {
			if p.Text == "" || p.File != "f" {
				t.Errorf("a problem without text or file: %#v", p)
			}
		}
		_ = c.Validate()
		_ = c.Resolve(func(string) string { return "/x" })
		if len(problems) > 0 {
			return
		}
		c = Default()
		if p := c.decode("f", text); len(p) > 0 {
			t.Fatalf("not the same twice: %v", p)
		}
		whole := Default()
		if err := toml.Unmarshal(text, whole); err != nil {
			t.Fatalf("accepted what TOML's decoder refuses: %v", err)
		}
		c.origins, whole.origins = nil, nil
		if !reflect.DeepEqual(c, whole) {
			t.Errorf("got  %+v\nwant %+v", c, whole)
		}
	})
}

// TestUnreadablePlaces: a file of the user's in a standard place that cannot be read is an
// error: without it the daemon would run with the default, less strict than what is asked for.
func TestUnreadablePlaces(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("XDG_CONFIG_HOME", dir)
	place := filepath.Join(dir, "subpod")
	for _, c := range [][2]string{{"subpod/subpod.toml", "nowhere"}, {"subpod/subpod.toml.d", "nowhere"}, {"subpod", "subpod"}, {"subpod", "nowhere"}} {
		name, to := c[0], c[1]
		if err := os.RemoveAll(place); err != nil {
			t.Fatal(err)
		}
		if name != "subpod" {
			if err := os.Mkdir(place, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
		if _, err := Load("", nil); err == nil {
			t.Errorf("%s is a link to %s, and the default is taken", name, to)
		}
	}
	if err := os.RemoveAll(place); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(place, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Load("", nil); err != nil {
		t.Errorf("where no directory is: %v", err)
	}
	if err := errors.Join(os.Remove(place), os.Mkdir(place, 0o755), os.WriteFile(filepath.Join(place, "subpod.toml.d"), nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	if _, err := Load("", nil); err == nil {
		t.Error("subpod.toml.d is a file, and the default is taken")
	}
	if err := errors.Join(os.RemoveAll(place), os.Mkdir(filepath.Join(dir, "elsewhere"), 0o755), os.Symlink("elsewhere", place)); err != nil {
		t.Fatal(err)
	}
	if _, err := Load("", nil); err != nil {
		t.Errorf("in an empty directory behind a link: %v", err)
	}
}
