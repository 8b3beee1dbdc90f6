package sandbox

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/netns"
	"github.com/subpod/subpod/pkg/api"
)

func named(madeBy, annotation string) *runtimeapi.PodSandboxConfig {
	return &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: "web"}, Hostname: "host",
		Labels: map[string]string{api.LabelMadeBy: madeBy}, Annotations: map[string]string{api.AnnotationNetworks: annotation},
	}
}

// TestParseNetworks: pods of subpod's commands have names, those of others none.
func TestParseNetworks(t *testing.T) {
	const all = `{"networks":[{"name":"back","aliases":["db"],"ips":["10.1.0.5"],"mac":"92:d0:c6:0a:29:33"}],"names":["more"],
		"services":[{"names":["svc"],"ports":[{"protocol":"tcp","port":80,"targetPort":8080}]}]}`
	n, err := parseNetworks(named(api.MadeByRun, all))
	var pod netns.Pod
	n.enter(&pod)
	if err != nil || !slices.Equal(pod.Names, []string{"web", "more", "host"}) || len(pod.Attachments) != 1 || len(pod.Services) != 1 ||
		pod.Attachments[0].Network != "back" || pod.Attachments[0].MAC.String() != "92:d0:c6:0a:29:33" || pod.Services[0].Ports[0].TargetPort != 8080 {
		t.Errorf("%+v, %v", pod, err)
	}
	if n, err := parseNetworks(named("", all)); err != nil || len(n.names)+len(n.attachments)+len(n.services) > 0 {
		t.Errorf("a pod of a kubelet: %+v, %v", n, err)
	}
	for _, bad := range []string{
		"{", `{"networks":[{"name":"a","ips":["x"]}]}`, `{"networks":[{"name":"a","mac":"x"}]}`, `{"networks":[{"name":"a","interface":"a/b"}]}`,
		`{"names":["a b"]}`, `{"names":[""]}`, `{"hosts":[{"ip":"x","names":["a"]}]}`, `{"hosts":[{"ip":"1.2.3.4","names":["a\nb"]}]}`,
		`{"names":["` + strings.Repeat("a\",\"", maxPodNames) + `b"]}`,
	} {
		if _, err := parseNetworks(named(api.MadeByPlay, bad)); err == nil {
			t.Errorf("%.60s is taken", bad)
		}
	}
}

// TestWithServers: the domain of names comes before the host's, which is kept unless the
// pod has its own; "." is no domain at all.
func TestWithServers(t *testing.T) {
	host := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(host, []byte("nameserver 9.9.9.9\nsearch corp.example\noptions ndots:2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	d := DNS{HostFile: host}
	ours := []netip.Addr{netip.MustParseAddr("10.88.0.1")}
	for name, c := range map[string]struct {
		servers []netip.Addr
		domain  string
		cfg     *runtimeapi.DNSConfig
		want    string
	}{
		"plain":    {ours, "d.internal", nil, "search d.internal corp.example\nnameserver 10.88.0.1\noptions ndots:2\n"},
		"its own":  {ours, "d.internal", &runtimeapi.DNSConfig{Searches: []string{"x"}, Options: []string{"use-vc"}}, "search d.internal x\nnameserver 10.88.0.1\noptions use-vc\n"},
		"none":     {ours, "d.internal", &runtimeapi.DNSConfig{Searches: []string{"."}}, "nameserver 10.88.0.1\noptions ndots:2\n"},
		"no names": {d.Servers(), "", &runtimeapi.DNSConfig{Searches: []string{"x"}}, "search x\nnameserver 9.9.9.9\noptions ndots:2\n"},
	} {
		if got, err := d.withServers(c.servers, c.domain, c.cfg); err != nil || string(got) != c.want {
			t.Errorf("%s: %q, %v; want %q", name, got, err, c.want)
		}
	}
}

// TestHosts: lines of hosts(5) come after the pod's own name, and host-gateway is the
// node's address.
func TestHosts(t *testing.T) {
	n := networks{hosts: []api.HostNames{{IP: "192.0.2.1", Names: []string{"a", "b"}}, {IP: api.HostGateway, Names: []string{"g"}}}}
	network := &netns.Result{Gateways: []netip.Addr{netip.MustParseAddr("10.88.0.1")}}
	if got := string(n.appendHosts([]byte("x\n"), network)); got != "x\n192.0.2.1\ta b\n10.88.0.1\tg\n" {
		t.Errorf("%q", got)
	}
	if got := string(n.appendHosts(nil, nil)); got != "192.0.2.1\ta b\n" {
		t.Errorf("without a network: %q", got)
	}
}
