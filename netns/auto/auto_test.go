package auto

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/subpod/subpod/netns"
	"github.com/subpod/subpod/netns/bridge"
	"github.com/subpod/subpod/netns/cni"
	"github.com/subpod/subpod/tests/nettest"
	"github.com/subpod/subpod/tests/nstest"
)

func TestMain(m *testing.M) {
	netns.Dispatch()
	os.Exit(nstest.Main(m, nstest.Options{Net: true, PID: true, IPC: true, UTS: true, IDs: 65536}))
}

func open(t *testing.T, w *nettest.World) *Network {
	t.Helper()
	b, err := bridge.New(bridge.Options{Thread: w.Thread, StateDir: filepath.Join(w.Dir, "state"), RunDir: filepath.Join(w.Dir, "run"), Subnets: []netip.Prefix{netip.MustParsePrefix("10.88.0.0/24")}})
	nettest.Must(t, err)
	t.Cleanup(func() { b.Close() })
	c, err := cni.New(cni.Options{Thread: w.Thread, StateDir: filepath.Join(w.Dir, "state", "cni"), ConfDirs: []string{filepath.Join(w.Dir, "net.d")}, Skip: NotOurs, BinDirs: []string{"/usr/lib/cni", "/usr/libexec/cni", "/opt/cni/bin"}})
	nettest.Must(t, err)
	return New(c, b, slog.Default())
}

// TestConfigurationDecides: a CNI configuration that appears is used for the pods
// that come then; those before it stay on the bridge, also across a restart.
func TestConfigurationDecides(t *testing.T) {
	w, ctx := nettest.New(t), context.Background()
	n := open(t, w)
	nettest.Must(t, n.Reconcile(ctx, nil))
	nettest.Must(t, n.Status(ctx))
	dir := filepath.Join(w.Dir, "net.d")
	nettest.Must(t, os.MkdirAll(dir, 0o755))
	nettest.Must(t, os.Symlink("/etc/.host/cni/net.d/10-root.conflist", filepath.Join(dir, "10-root.conflist")))
	nettest.Must(t, os.WriteFile(filepath.Join(dir, "87-podman-bridge.conflist"), []byte("{}"), 0o600))
	byBridge := w.Pod("by-bridge", netns.PortMapping{Proto: "tcp", HostPort: 8080, ContainerPort: 80})
	r1 := w.Setup(n, byBridge)
	conf := filepath.Join(w.Dir, "net.d", "10.conflist")
	nettest.Must(t, os.MkdirAll(filepath.Dir(conf), 0o755))
	nettest.Must(t, os.WriteFile(conf, []byte(`{"cniVersion":"1.0.0","name":"pods","plugins":[{"type":"bridge","bridge":"cni0","isGateway":true,"ipMasq":true,
		"ipam":{"type":"host-local","dataDir":"`+w.Dir+`/host-local","ranges":[[{"subnet":"10.99.0.0/24"}]],"routes":[{"dst":"0.0.0.0/0"}]}}]}`), 0o644))
	byCNI := w.Pod("by-cni")
	r2 := w.Setup(n, byCNI)
	if r1.IPs[0].String() != "10.88.0.2" || r2.IPs[0].String() != "10.99.0.2" {
		t.Fatalf("addresses %s and %s", r1.IPs[0], r2.IPs[0])
	}
	n = open(t, w)
	nettest.Must(t, n.Reconcile(ctx, []netns.Pod{byBridge, byCNI}))
	if a, b := w.Setup(n, byBridge), w.Setup(n, byCNI); a.IPs[0] != r1.IPs[0] || b.IPs[0] != r2.IPs[0] {
		t.Errorf("after a restart %s and %s", a.IPs[0], b.IPs[0])
	}
	w.Serve(byBridge.NetNS, "by-bridge", 80)
	w.WantAnswer(byCNI.NetNS, "tcp", "10.88.0.2:80", "by-bridge", "")
	w.WantAnswer(w.Outside, "tcp", "192.0.2.2:8080", "by-bridge", "192.0.2.1")
	nettest.Must(t, n.Teardown(ctx, byBridge.ID))
	nettest.Must(t, n.Teardown(ctx, byCNI.ID))
	nettest.Must(t, os.Remove(conf))
	if r := w.Setup(n, w.Pod("again")); r.Interface != "eth0" || r.IPs[0].As4()[1] != 88 {
		t.Errorf("without the configuration: %+v", r)
	}
}

// TestNoBridgeBesideCNI: with a configuration there is no bridge of our own, whose
// subnet might be in the way.
func TestNoBridgeBesideCNI(t *testing.T) {
	w := nettest.New(t)
	nettest.Must(t, os.MkdirAll(filepath.Join(w.Dir, "net.d"), 0o755))
	nettest.Must(t, os.WriteFile(filepath.Join(w.Dir, "net.d", "x.conf"), []byte("{"), 0o644))
	n := open(t, w)
	nettest.Must(t, n.Reconcile(context.Background(), nil))
	if err := n.Status(context.Background()); err == nil {
		t.Error("ready with a broken configuration")
	}
	nettest.Must(t, w.Thread.Do(func() error {
		if _, err := os.Stat("/proc/thread-self/net/dev_snmp6/subpod0"); err == nil {
			t.Error("there is a bridge")
		}
		return nil
	}))
}

// TestBridgeComesLater: at server start the bridge's name is taken, so it cannot be
// made. Once it can, the pods of before have the addresses and links that they had.
func TestBridgeComesLater(t *testing.T) {
	w, ctx := nettest.New(t), context.Background()
	n := open(t, w)
	nettest.Must(t, n.Reconcile(ctx, nil))
	pod := w.Pod("one", netns.PortMapping{Proto: "tcp", HostPort: 8080, ContainerPort: 80})
	r := w.Setup(n, pod)
	nettest.Must(t, n.bridge.Close()) // the server ends
	nettest.Must(t, w.Thread.Do(func() error {
		return exec.Command("sh", "-c", "ip link del subpod0 && ip link add subpod0 type veth peer name other").Run()
	}))
	n = open(t, w)
	if err := n.Reconcile(ctx, []netns.Pod{pod}); err == nil {
		t.Fatal("an interface that is no bridge was taken for one")
	}
	if err := n.Status(ctx); !errors.Is(err, netns.ErrNotReady) {
		t.Errorf("Status without a bridge: %v", err)
	}
	nettest.Must(t, w.Thread.Do(func() error { return exec.Command("ip", "link", "del", "subpod0").Run() }))
	nettest.Must(t, n.Status(ctx))
	if again := w.Setup(n, pod); again.IPs[0] != r.IPs[0] {
		t.Errorf("address %s, before %s", again.IPs[0], r.IPs[0])
	}
	if other := w.Setup(n, w.Pod("two")); other.IPs[0] == r.IPs[0] {
		t.Errorf("another pod has the address %s of a live one", r.IPs[0])
	}
	w.Serve(pod.NetNS, "one", 80)
	w.WantAnswer(w.Outside, "tcp", "192.0.2.2:8080", "one", "192.0.2.1")
}

// TestRefusedPodCIDR: subnets that one of the two refuses or cannot store are stored by
// neither.
func TestRefusedPodCIDR(t *testing.T) {
	w, ctx := nettest.New(t), context.Background()
	n := open(t, w)
	nettest.Must(t, n.Reconcile(ctx, nil))
	cniFile, bridgeFile := filepath.Join(w.Dir, "state", "cni", "podcidr.json"), filepath.Join(w.Dir, "state", "podcidr")
	read := func() string {
		a, _ := os.ReadFile(cniFile)
		b, _ := os.ReadFile(bridgeFile)
		return string(a) + "|" + string(b)
	}
	refuse := func(what, cidr string) {
		t.Helper()
		before := read()
		if err := n.SetPodCIDR(ctx, []netip.Prefix{netip.MustParsePrefix(cidr)}); err == nil {
			t.Errorf("%s: %s was accepted", what, cidr)
		}
		if after := read(); after != before {
			t.Errorf("%s: stored %q, before %q", what, after, before)
		}
	}
	blocked := func(file string) {
		t.Helper()
		nettest.Must(t, os.Mkdir(file+".new", 0o700))
		refuse("nothing can be stored", "10.7.0.0/24")
		nettest.Must(t, os.Remove(file+".new"))
	}
	refuse("an address", "10.0.0.1/32")
	blocked(bridgeFile)
	blocked(cniFile)
	nettest.Must(t, n.SetPodCIDR(ctx, []netip.Prefix{netip.MustParsePrefix("10.244.3.0/24")}))
	refuse("a multicast subnet", "224.0.0.0/8")
	blocked(bridgeFile)
	blocked(cniFile)
}
