package kubelet

import (
	"context"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/subpod/subpod/cmd/internal/doctor"
)

var update = flag.Bool("update", false, "write the golden files")

// golden compares with testdata/NAME.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s: got\n%s\nwant\n%s", name, got, want)
	}
}

// bare has no controllers and the IDs that useradd gives; whole has everything.
var (
	bare  = Node{Socket: "/run/user/1000/subpod/subpod.sock", ResolvConf: "/run/user/1000/subpod/node/resolv.conf", IDs: 65537}
	whole = Node{Socket: "/s.sock", ResolvConf: "/r", Controllers: []string{"cpu", "memory", "pids"}, IDs: 111*IDsPerPod + 1}
)

func joining() Options {
	o := DefaultOptions()
	o.UserNamespaces = true
	o.NodeName, o.NodeIP, o.KubernetesVersion, o.SANs = "worker", "192.0.2.7", "v1.37.2", []string{"kube.example"}
	o.Server, o.Token, o.CACertHashes = "192.0.2.1:6443", "abcdef.0123456789abcdef", []string{"sha256:00"}
	return o
}

func TestConfigurations(t *testing.T) {
	for _, test := range []struct {
		name string
		make func(Node, Options) (string, error)
		node Node
		opts Options
	}{
		{"kubelet-bare.yaml", Kubelet, bare, DefaultOptions()},
		{"kubelet-whole.yaml", Kubelet, whole, DefaultOptions()},
		{"patch.yaml", Patch, whole, joining()},
		{"init.yaml", Init, bare, DefaultOptions()},
		{"init-address.yaml", Init, whole, joining()},
		{"join.yaml", Join, whole, joining()},
		{"kube-proxy.yaml", Proxy, bare, DefaultOptions()},
		{"reset.yaml", Reset, bare, DefaultOptions()},
		{"upgrade.yaml", Upgrade, bare, DefaultOptions()},
		{"tunnel.yaml", Tunnel, bare, DefaultOptions()},
		{"resize.yaml", Resize, bare, Options{NodeName: "worker"}},
	} {
		got, err := test.make(test.node, test.opts)
		if err != nil {
			t.Fatal(err)
		}
		golden(t, test.name, got)
		for doc := range strings.SplitSeq(got, "\n---\n") {
			var kind struct{ APIVersion, Kind string }
			if err := yaml.UnmarshalStrict([]byte(doc), &map[string]any{}); err != nil {
				t.Errorf("%s: %v", test.name, err)
			}
			if err := yaml.Unmarshal([]byte(doc), &kind); err != nil || kind.APIVersion == "" || kind.Kind == "" {
				t.Errorf("%s: a document without a kind (%v):\n%s", test.name, err, doc)
			}
		}
	}
}

func TestFiles(t *testing.T) {
	for _, o := range []Options{DefaultOptions(), joining()} {
		files, err := Files(whole, o)
		if err != nil {
			t.Fatal(err)
		}
		join := slices.ContainsFunc(files, func(f File) bool { return f.Name == "join.yaml" })
		if join != (o.Server != "") {
			t.Errorf("join.yaml: %v with server %q", join, o.Server)
		}
	}
	if text, err := Resize(whole, DefaultOptions()); err == nil {
		t.Errorf("a node that can resize pods refuses it:\n%s", text)
	}
	for _, n := range []Node{bare, whole} {
		files, err := Files(n, DefaultOptions())
		if err != nil {
			t.Fatal(err)
		}
		resize := slices.ContainsFunc(files, func(f File) bool { return f.Name == "resize.yaml" })
		if resize != (len(n.Missing()) > 0) {
			t.Errorf("resize.yaml: %v without %q", resize, n.Missing())
		}
	}
}

// With user namespaces there are no more pods than the node has for, and none is an error.
func TestMaxPods(t *testing.T) {
	for _, test := range []struct {
		ids         uint32
		asked, want int // 0: refused
	}{
		{65537, 0, 0}, {131071, 0, 0}, {131072, 0, 1}, {196609, 0, 2}, {33*IDsPerPod + 1, 0, 32},
		{111 * IDsPerPod, 0, 110}, {500 * IDsPerPod, 0, 110}, {196609, 2, 2}, {196609, 3, 0}, {500 * IDsPerPod, 400, 400},
	} {
		n := bare
		n.IDs = test.ids
		v, err := newValues(n, Options{MaxPods: test.asked, UserNamespaces: true})
		if test.want == 0 {
			if !errors.Is(err, ErrIDs) {
				t.Errorf("%d IDs, %d asked: %v", test.ids, test.asked, err)
			}
			continue
		}
		if err != nil || v.MaxPods != test.want {
			t.Errorf("%d IDs, %d asked: %d, want %d: %v", test.ids, test.asked, v.MaxPods, test.want, err)
		}
		if v, err := newValues(n, Options{}); err != nil || v.MaxPods != DefaultMaxPods {
			t.Errorf("without user namespaces: %d, %v", v.MaxPods, err)
		}
	}
}

func TestOptions(t *testing.T) {
	for what, spoil := range map[string]func(*Options){
		"--node-ip":        func(o *Options) { o.NodeIP = "host" },
		"--pod-subnet":     func(o *Options) { o.PodSubnet = "10.244.0.1/16" },
		"--service-subnet": func(o *Options) { o.ServiceSubnet = "" },
		"--max-pods":       func(o *Options) { o.MaxPods = -1 },
	} {
		o := DefaultOptions()
		if spoil(&o); o.Check() == nil || !strings.Contains(o.Check().Error(), what) {
			t.Errorf("%s: %v", what, o.Check())
		}
	}
	if o := joining(); o.Check() != nil {
		t.Error(o.Check())
	}
}

func TestUnits(t *testing.T) {
	units, err := Units(Programs{Subpod: "/home/ann/.local/bin/subpod", Path: "/home/ann/.local/bin:/usr/bin", Args: " --user-namespaces"})
	if err != nil {
		t.Fatal(err)
	}
	for _, u := range units {
		golden(t, u.Name, u.Content)
	}
	// As systemd.syntax(7) and systemd.unit(5) read them.
	units, err = Units(Programs{Subpod: "/opt/100%/$x/sub pod", Path: `/usr/bin:/mnt/c/Program Files/a"b\c`, Env: []string{"XDG_DATA_HOME=/5%"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, u := range units {
		if !strings.Contains(u.Content, `Environment="PATH=/usr/bin:/mnt/c/Program Files/a\"b\\c"`+"\nEnvironment=XDG_DATA_HOME=/5%%\n") || !strings.Contains(u.Content, `ExecStart="/opt/100%%/$x/sub pod" `) {
			t.Errorf("%s", u.Content)
		}
	}
}

func text(results []doctor.Result) string {
	var b strings.Builder
	for _, r := range results {
		b.WriteString(r.Level.String() + " " + r.Check + ": " + r.What + "\n")
		for line := range strings.Lines(r.Fix) {
			b.WriteString("    " + strings.TrimSuffix(line, "\n") + "\n")
		}
	}
	return b.String()
}

func TestCheck(t *testing.T) {
	all := map[string]string{"kubelet": "Kubernetes v1.37.2"}
	for _, name := range Wanted[1:] {
		all[name] = ""
	}
	good := Host{Node: whole, User: "ann", Hostname: "box", Unified: true, Durable: true, NodeIP: "192.0.2.7", HasNodeIP: true,
		Programs: all, CPUs: 4, MemoryMB: 8000}
	good.Expose, good.WaitsForCIDR = []string{"tcp:10250"}, true
	golden(t, "check-good.txt", text(Check(good)))
	if worst := doctor.Worst(Check(good)); worst != doctor.OK {
		t.Errorf("a good host is %v", worst)
	}
	bad := Host{Node: bare, User: "ann", Hostname: "My_Box", NodeIP: "192.0.2.7", CPUs: 1, MemoryMB: 900,
		Programs: map[string]string{"kubelet": "Kubernetes v1.36.1", "mount": ""}}
	golden(t, "check-bad.txt", text(Check(bad)))
	some := good
	some.IDs, some.NodeIP, some.Programs = 33*IDsPerPod, "", map[string]string{"mount": "", "losetup": "", "cp": "", "ip": "", "kubeadm": ""}
	golden(t, "check-some.txt", text(Check(some)))
	few := good
	few.IDs = 196609
	golden(t, "check-few.txt", text(Check(few)))
}

func TestFlags(t *testing.T) {
	args := parseFlags([]byte("# kubeadm's\nKUBELET_KUBEADM_ARGS=\"--hostname-override=x --node-ip=192.0.2.7 --v 2\"\n"))
	if want := []string{"--hostname-override=x", "--node-ip=192.0.2.7", "--v", "2"}; !slices.Equal(args, want) {
		t.Errorf("%q", args)
	}
	if got := flagValue(args, "node-ip") + flagValue(args, "v") + flagValue(args, "config"); got != "192.0.2.72" {
		t.Error(got)
	}
	if parseFlags(nil) != nil {
		t.Error("arguments out of nothing")
	}
}

// The kubelet's arguments are there once kubeadm has written all of its files.
func TestArgsWaits(t *testing.T) {
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, file := range []string{FlagsFile, ConfigFile, Bootstrap} {
		if _, err := Args(ctx, dir); !errors.Is(err, context.Canceled) {
			t.Fatalf("before %s: %v", file, err)
		}
		path := dir + file
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("KUBELET_KUBEADM_ARGS=\"--x=y\"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	args, err := Args(ctx, dir)
	if err != nil || args[len(args)-1] != "--x=y" {
		t.Errorf("%q, %v", args, err)
	}
}

func TestMaxPodsOfKubelet(t *testing.T) {
	file := filepath.Join(t.TempDir(), "config.yaml")
	if err := os.WriteFile(file, []byte("maxPods: 32\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if n := maxPods([]string{"--config", file}); n != 32 {
		t.Error(n)
	}
	if n := maxPods(nil); n != DefaultMaxPods {
		t.Error(n)
	}
}

func TestCountIDs(t *testing.T) {
	for text, want := range map[string]uint32{
		"         0       1000          1\n         1     100000      65536\n": 65537,
		"0 0 4294967295\n": 4294967295,
		"5 0 1\n":          0,
		"0 0 1\n2 2 1\n":   1,
		"":                 0,
	} {
		if got := countIDs(text); got != want {
			t.Errorf("%q: %d, want %d", text, got, want)
		}
	}
}

// The account's range begins at the second 65536 IDs and ends with the node's.
func TestAccount(t *testing.T) {
	files := account("root:x:0:0::/root:/bin/sh\nkubelet:x:1:1::/:/bin/sh", 33*IDsPerPod+1)
	if files["subuid"] != "kubelet:65536:2097152\n" || files["subgid"] != files["subuid"] {
		t.Errorf("%q", files)
	}
	if n := strings.Count(files["passwd"], "\nkubelet:"); n != 1 || !strings.HasPrefix(files["passwd"], "root:") {
		t.Errorf("%q", files["passwd"])
	}
}

// A node that has no address of its host's cannot be a peer of others.
func TestCheckNodeIP(t *testing.T) {
	if err := CheckNodeIP([]string{"--node-ip=192.0.2.7"}); err != nil {
		t.Error(err)
	}
	if err := CheckNodeIP([]string{"--config=x"}); !errors.Is(err, ErrNodeIP) {
		t.Errorf("%v, want %v", err, ErrNodeIP)
	}
}
