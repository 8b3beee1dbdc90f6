package cni

import (
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/subpod/subpod/netns"
	"github.com/subpod/subpod/tests/nettest"
)

var (
	background = context.Background()
	v4         = []netip.Prefix{netip.MustParsePrefix("10.99.0.0/24")}
)

// wantError checks that an error says these words.
func wantError(t *testing.T, err error, is error, words ...string) {
	t.Helper()
	if err == nil || (is != nil && !errors.Is(err, is)) {
		t.Fatalf("error %v, want %v", err, is)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("error %q does not say %q", err, w)
		}
	}
}

// leases returns the addresses that host-local has given out.
func leases(w *nettest.World) (all []string) {
	files, _ := filepath.Glob(filepath.Join(w.Dir, "host-local", "*", "*"))
	for _, f := range files {
		if _, err := netip.ParseAddr(filepath.Base(f)); err == nil {
			all = append(all, filepath.Base(f))
		}
	}
	return all
}

func TestConfigurationIsReadAgainWhenItChanges(t *testing.T) {
	w := nettest.New(t)
	n := open(t, w)
	wantError(t, n.Status(background), netns.ErrNotReady, "no network configuration", "net.d")
	if _, err := n.Setup(background, w.Pod("early")); !errors.Is(err, netns.ErrNotReady) {
		t.Errorf("Setup without a configuration: %v", err)
	}
	file := write(t, w, "10-pods.conflist", `{"name": "pods", "plugins": [`)
	wantError(t, n.Status(background), netns.ErrNotReady, file)
	configure(t, w, "10-pods.conflist", chain(w, v4))
	nettest.Must(t, n.Status(background))
	if r := w.Setup(n, w.Pod("one")); !v4[0].Contains(r.IPs[0]) {
		t.Errorf("address %s", r.IPs[0])
	}
	other := []netip.Prefix{netip.MustParsePrefix("10.77.0.0/24")}
	second := chain(w, other)
	second["name"], second["cniVersion"] = "other", "0.4.0"
	second["plugins"].([]obj)[0]["bridge"] = "cni1"
	configure(t, w, "05-first.conflist", second)
	r := w.Setup(n, w.Pod("two"))
	if !other[0].Contains(r.IPs[0]) {
		t.Errorf("address %s, want one of the file that comes first now", r.IPs[0])
	}
	if len(r.Routes) != 1 || r.Routes[0].Dst.Bits() != 0 {
		t.Errorf("routes %v, want the default route", r.Routes)
	}
	configure(t, w, "00-missing.conflist", obj{"cniVersion": "1.0.0", "name": "x", "plugins": []obj{{"type": "nowhere"}}})
	wantError(t, n.Status(background), netns.ErrNotReady, "nowhere", "cni_bin_dirs", "00-missing.conflist")
	// Pods are taken down by what they were made with.
	for _, name := range []string{"one", "two", "early"} {
		nettest.Must(t, n.Teardown(background, nettest.PodID(name)))
	}
	if left := leases(w); len(left) != 0 {
		t.Errorf("addresses are left: %v", left)
	}
}

func TestSinglePluginFile(t *testing.T) {
	w := nettest.New(t)
	plugin := chain(w, v4)["plugins"].([]obj)[0]
	plugin["cniVersion"], plugin["name"] = "0.3.1", "single"
	configure(t, w, "10.conf", plugin)
	n := open(t, w)
	pod := w.Pod("one", netns.PortMapping{Proto: "tcp", HostPort: 80, ContainerPort: 80}) // nothing maps it: a warning
	w.Setup(n, pod)
	nettest.Must(t, n.Check(background, pod.ID)) // before 0.4 there was no CHECK
	nettest.Must(t, n.Teardown(background, pod.ID))
}

// TestFlannel: the configuration that flannel's daemon set installs. Its plugin is
// not in Debian: pluginFlannel stands for it.
func TestFlannel(t *testing.T) {
	w := nettest.New(t)
	dir := script(t, w, "flannel", "export FLANNEL_DATA="+w.Dir+"/host-local\n"+part(t, "plugin-flannel"))
	configure(t, w, "10-flannel.conflist", obj{"name": "cbr0", "cniVersion": "0.3.1", "plugins": []obj{
		{"type": "flannel", "delegate": obj{"hairpinMode": true, "isDefaultGateway": true}},
		{"type": "portmap", "capabilities": obj{"portMappings": true}},
	}})
	n := open(t, w, func(o *Options) { o.BinDirs = append([]string{dir}, o.BinDirs...) })
	nettest.Must(t, n.Status(background))
	one, two := w.Pod("one", netns.PortMapping{Proto: "tcp", HostPort: 8080, ContainerPort: 80}), w.Pod("two")
	r := w.Setup(n, one)
	w.Setup(n, two)
	if r.MTU != 1450 || r.IPs[0].String() != "10.244.1.2" || len(r.Routes) == 0 {
		t.Errorf("result %+v", r)
	}
	w.Serve(one.NetNS, "one", 80)
	w.WantAnswer(two.NetNS, "tcp", nettest.HostPort(r.IPs[0], 80), "one", "10.244.1.3")
	w.WantAnswer(w.Outside, "tcp", "192.0.2.2:8080", "one", "192.0.2.1")
	nettest.Must(t, errors.Join(n.Teardown(background, one.ID), n.Teardown(background, two.ID)))
	if left := leases(w); len(left) != 0 {
		t.Errorf("addresses are left: %v", left)
	}
}

// TestLoopbackInTheChain: containerd runs it for each pod, some put it in lists.
func TestLoopbackInTheChain(t *testing.T) {
	w := nettest.New(t)
	conf := chain(w, v4)
	// Not with bandwidth, whose CHECK of a pod without limits panics in 1.1.1.
	conf["plugins"] = append(conf["plugins"].([]obj)[:2], obj{"type": "loopback"})
	configure(t, w, "10.conflist", conf)
	n := open(t, w)
	pod := w.Pod("one")
	if r := w.Setup(n, pod); len(r.IPs) != 1 || r.Interface != "eth0" {
		t.Errorf("result %+v", r)
	}
	nettest.Must(t, n.Check(background, pod.ID))
	nettest.Must(t, n.Teardown(background, pod.ID))
}

// withPlugin opens a chain that ends in our own plugin.
func withPlugin(t *testing.T, w *nettest.World, text string, change ...func(*Options)) *Network {
	dir := script(t, w, "ours", pass(t, text))
	conf := chain(w, v4)
	plugins := conf["plugins"].([]obj)
	conf["plugins"] = append(plugins[:1:1], obj{"type": "ours", "capabilities": obj{"portMappings": true, "bandwidth": true, "ipRanges": true, "io.kubernetes.cri.pod-annotations": true}}, plugins[1])
	configure(t, w, "10.conflist", conf)
	return open(t, w, append([]func(*Options){func(o *Options) { o.BinDirs = append([]string{dir}, o.BinDirs...) }}, change...)...)
}

func TestPluginFails(t *testing.T) {
	w := nettest.New(t)
	n := withPlugin(t, w, `[ -e "`+w.Dir+`/$CNI_COMMAND" ] && { echo '{"cniVersion":"1.0.0","code":100,"msg":"the switch is on fire"}'; exit 1; }`)
	fail := func(verb string, on bool) {
		if path := filepath.Join(w.Dir, verb); on {
			nettest.Must(t, os.WriteFile(path, nil, 0o600))
		} else {
			nettest.Must(t, os.Remove(path))
		}
	}
	port := netns.PortMapping{Proto: "tcp", HostPort: 8080, ContainerPort: 80}
	pod := w.Pod("one", port)
	w.Setup(n, w.Pod("warm-up", port))
	nettest.Must(t, n.Teardown(background, nettest.PodID("warm-up")))
	before := w.Ruleset()

	fail("ADD", true)
	_, err := n.Setup(background, pod)
	wantError(t, err, nil, "plugin ours failed at ADD", "the switch is on fire", "test/one", `"pods"`)
	if left := leases(w); len(left) != 0 {
		t.Errorf("a failed Setup left %v", left)
	}
	if has, _ := n.Has(pod.ID); has {
		t.Error("a failed Setup left its record")
	}
	fail("ADD", false)

	w.Setup(n, pod)
	fail("CHECK", true)
	wantError(t, n.Check(background, pod.ID), nil, "plugin ours failed at CHECK", "on fire")
	fail("CHECK", false)
	fail("DEL", true)
	wantError(t, n.Teardown(background, pod.ID), nil, "plugin ours failed at DEL", "on fire", "tried again", pod.ID+".json")
	// The plugins before and after it have been called all the same.
	if left := leases(w); len(left) != 0 {
		t.Errorf("the address was not freed: %v", left)
	}
	if after := w.Ruleset(); after != before {
		t.Errorf("rules are left:\n%s", after)
	}
	fail("DEL", false)
	nettest.Must(t, n.Teardown(background, pod.ID))
	if has, _ := n.Has(pod.ID); has {
		t.Error("the record is left")
	}
}

func TestPluginHangs(t *testing.T) {
	w := nettest.New(t)
	n := withPlugin(t, w, `[ -e "`+w.Dir+`/$CNI_COMMAND" ] && { sleep 1000 & sleep 1000; }`)
	pod := w.Pod("one")
	hang := func(verb string) { nettest.Must(t, os.WriteFile(filepath.Join(w.Dir, verb), nil, 0o600)) }
	within := func(what string, f func() error) {
		t.Helper()
		// Enough for the other plugins; it is the hanging one's that is waited for.
		n.Timeout = 5 * time.Second
		defer func() { n.Timeout = DefaultTimeout }()
		begin := time.Now()
		wantError(t, f(), context.DeadlineExceeded, "plugin ours failed at "+what, "killed")
		if took := time.Since(begin); took > time.Minute { // sleep 1000
			t.Errorf("%s took %v", what, took)
		}
		// What was killed takes its time to end on a busy machine.
		nettest.Eventually(t, what+" leaves no processes of the plugin", func() bool { return sleepers(t) == 0 })
	}
	hang("ADD")
	within("ADD", func() error { _, err := n.Setup(background, pod); return err })
	nettest.Must(t, os.Remove(filepath.Join(w.Dir, "ADD")))
	w.Setup(n, pod)
	hang("DEL")
	within("DEL", func() error { return n.Teardown(background, pod.ID) })
	if left := leases(w); len(left) != 0 {
		t.Errorf("the address was not freed: %v", left)
	}
	nettest.Must(t, os.Remove(filepath.Join(w.Dir, "DEL")))
	nettest.Must(t, n.Reconcile(background, nil))
	if has, _ := n.Has(pod.ID); has {
		t.Error("Reconcile has not finished the teardown")
	}
}

// sleepers counts the processes in this PID namespace that the hanging plugin made.
func sleepers(t *testing.T) (count int) {
	stats, err := filepath.Glob("/proc/[0-9]*/cmdline")
	nettest.Must(t, err)
	for _, f := range stats {
		if text, _ := os.ReadFile(f); strings.HasPrefix(string(text), "sleep\x00") {
			count++
		}
	}
	return count
}

// TestPluginsGetWhatTheyCanDo: capabilities and arguments as the conventions have them.
func TestPluginsGetWhatTheyCanDo(t *testing.T) {
	w := nettest.New(t)
	seen := filepath.Join(w.Dir, "seen")
	n := withPlugin(t, w, `conf=$(cat); echo "$conf" > "`+seen+`.$CNI_COMMAND"; echo "$CNI_ARGS" > "`+seen+`.args"; set --; exec 0<"`+seen+`.$CNI_COMMAND"`)
	nettest.Must(t, n.SetPodCIDR(background, []netip.Prefix{netip.MustParsePrefix("10.5.0.0/16")}))
	pod := w.Pod("one", netns.PortMapping{Proto: "udp", HostIP: netip.MustParseAddr("127.0.0.1"), HostPort: 5353, ContainerPort: 53})
	pod.UID, pod.IngressRate, pod.Annotations = "uid-1", 8e6, map[string]string{"example.com/policy": "strict"}
	w.Setup(n, pod)
	var conf struct {
		RuntimeConfig struct {
			PortMappings []obj
			Bandwidth    map[string]float64
			IPRanges     [][]obj
			Annotations  map[string]string `json:"io.kubernetes.cri.pod-annotations"`
		}
	}
	data, err := os.ReadFile(seen + ".ADD")
	nettest.Must(t, err)
	nettest.Must(t, json.Unmarshal(data, &conf))
	rc := conf.RuntimeConfig
	if len(rc.PortMappings) != 1 || rc.PortMappings[0]["hostIP"] != "127.0.0.1" || rc.PortMappings[0]["hostPort"] != 5353.0 || rc.PortMappings[0]["protocol"] != "udp" {
		t.Errorf("portMappings %v", rc.PortMappings)
	}
	if rc.Bandwidth["ingressRate"] != 8e6 || rc.Bandwidth["ingressBurst"] == 0 || len(rc.Bandwidth) != 2 {
		t.Errorf("bandwidth %v", rc.Bandwidth)
	}
	if len(rc.IPRanges) != 1 || rc.IPRanges[0][0]["subnet"] != "10.5.0.0/16" {
		t.Errorf("ipRanges %v", rc.IPRanges)
	}
	if rc.Annotations["example.com/policy"] != "strict" {
		t.Errorf("pod annotations %v", rc.Annotations)
	}
	args, _ := os.ReadFile(seen + ".args")
	for _, want := range []string{"IgnoreUnknown=1", "K8S_POD_NAMESPACE=test", "K8S_POD_NAME=one", "K8S_POD_INFRA_CONTAINER_ID=" + pod.ID, "K8S_POD_UID=uid-1"} {
		if !strings.Contains(string(args), want) {
			t.Errorf("CNI_ARGS %q without %s", args, want)
		}
	}
	nettest.Must(t, n.Teardown(background, pod.ID))
	if data, _ := os.ReadFile(seen + ".DEL"); !strings.Contains(string(data), `"prevResult"`) {
		t.Errorf("DEL without the result of ADD: %s", data)
	}
	bad := w.Pod("bad")
	bad.Name = "a;K8S_POD_NAME=b"
	if _, err := n.Setup(background, bad); !errors.Is(err, netns.ErrBadPod) {
		t.Errorf("a name that smuggles an argument: %v", err)
	}
}

// TestCollect: GC tells the plugins which attachments are alive (CNI 1.1).
func TestCollect(t *testing.T) {
	w := nettest.New(t)
	seen := filepath.Join(w.Dir, "seen")
	dir := script(t, w, "ours", `cat > "`+seen+`.$CNI_COMMAND"
case $CNI_COMMAND in
ADD) nsenter --net="$CNI_NETNS" ip link add eth0 type veth peer name eth1 || exit 1
  echo '{"cniVersion":"1.1.0","interfaces":[{"name":"eth0","sandbox":"'$CNI_NETNS'"}],"ips":[{"address":"10.99.0.9/24","interface":0}]}' ;;
STATUS) [ -e "`+w.Dir+`/broken" ] && { echo '{"cniVersion":"1.1.0","code":50,"msg":"no controller yet"}'; exit 1; } ;;
esac
exit 0
`)
	configure(t, w, "10.conflist", obj{"cniVersion": "1.1.0", "name": "new", "plugins": []obj{{"type": "ours"}}})
	n := open(t, w, func(o *Options) { o.BinDirs = []string{dir} })
	pod := w.Pod("one")
	w.Setup(n, pod)
	nettest.Must(t, n.Reconcile(background, []netns.Pod{pod}))
	data, err := os.ReadFile(seen + ".GC")
	if err != nil || !strings.Contains(string(data), pod.ID) {
		t.Errorf("GC got %q, %v: want the living pod in it", data, err)
	}
	nettest.Must(t, os.WriteFile(filepath.Join(w.Dir, "broken"), nil, 0o600))
	wantError(t, n.Status(background), netns.ErrNotReady, "plugin ours failed at STATUS", "no controller yet")
}
