package cri

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/subpod/subpod/tests/node"
)

// ip returns a pod's address.
func (p *pod) ip() string {
	var status struct {
		Status struct{ Network struct{ IP string } }
	}
	p.n.CrictlJSON(&status, "inspectp", "-o", "json", p.id)
	return status.Status.Network.IP
}

func TestNetwork(t *testing.T) {
	// What the pods can reach outside is the host itself, by its own address: no
	// test needs the internet.
	n := node.Start(t, node.Options{})
	n.Crictl("pull", busybox)
	n.Crictl("pull", nginx)
	noLeaks(t, n)
	port := freePort(t)
	web := runPod(t, n, "web", nil, obj{"port_mappings": []obj{{"protocol": 0, "container_port": 80, "host_port": port}}})
	webContainer := web.run("nginx", nil, obj{"image": obj{"image": nginx}})
	client := runPod(t, n, "client", nil, obj{"dns_config": obj{
		"servers": []string{"10.99.0.10"}, "searches": []string{"tests.svc.cluster.local"}, "options": []string{"ndots:5"},
	}})
	id := client.run("c", sleeper())
	address := web.ip()

	t.Run("pod to pod", func(t *testing.T) {
		n := n.For(t)
		if address == client.ip() || net.ParseIP(address) == nil {
			t.Fatalf("addresses %q and %q", address, client.ip())
		}
		eventually(t, "page", func() error {
			out, err := n.TryCrictl("exec", "-s", id, "wget", "-qO-", "-T", "5", "http://"+address)
			if err == nil && !strings.Contains(out, "Welcome to nginx") {
				err = fmt.Errorf("%q", out)
			}
			return err
		})
	})
	t.Run("pod to the world", func(t *testing.T) {
		n := n.For(t)
		host := hostAddress(t)
		l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
		if err != nil {
			t.Fatal(err)
		}
		server := &httptest.Server{Listener: l, Config: &http.Server{Handler: http.HandlerFunc(
			func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "the world") })}}
		server.Start()
		defer server.Close()
		expect(t, "page", n.Crictl("exec", "-s", id, "wget", "-qO-", "-T", "5", server.URL), "the world")
	})
	t.Run("dns_config", func(t *testing.T) {
		n := n.For(t)
		out := n.Crictl("exec", "-s", id, "cat", "/etc/resolv.conf")
		expect(t, "resolv.conf", out, "nameserver 10.99.0.10", "search tests.svc.cluster.local", "options ndots:5")
	})
	t.Run("host's DNS", func(t *testing.T) {
		n := n.For(t)
		out := n.Crictl("exec", "-s", webContainer, "cat", "/etc/resolv.conf")
		expect(t, "resolv.conf", out, "nameserver ")
		if strings.Contains(out, "nameserver 127.") {
			t.Errorf("a pod cannot reach the host's loopback resolver:\n%s", out)
		}
	})
	t.Run("hosts", func(t *testing.T) {
		n := n.For(t)
		out := n.Crictl("exec", "-s", id, "cat", "/etc/hosts")
		expect(t, "hosts", out, "127.0.0.1", "localhost")
	})
	t.Run("host port from the host", func(t *testing.T) {
		expect(t, "page", get(t, fmt.Sprintf("http://127.0.0.1:%d/", port)), "Welcome to nginx")
	})
	t.Run("host port from inside the node", func(t *testing.T) {
		n := n.For(t)
		out := n.Enter("bash", "-c", fmt.Sprintf("exec 3<>/dev/tcp/127.0.0.1/%d; printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3", port))
		expect(t, "page", out, "Welcome to nginx")
	})
	t.Run("host network", func(t *testing.T) {
		n := n.For(t)
		host := runPod(t, n, "hostnet", nil, obj{"linux": linux(obj{"network": 2, "pid": 1})})
		id := host.in(n).run("c", sleeper(), obj{"linux": linux(obj{"network": 2, "pid": 1})})
		inside := strings.TrimSpace(n.Enter("readlink", "/proc/self/ns/net"))
		if got := n.Crictl("exec", "-s", id, "readlink", "/proc/self/ns/net"); got != inside {
			t.Errorf("network namespace %s, the node's is %s", got, inside)
		}
	})
}

// TestPodsHaveTheirOwnNamespaces: what the pod's containers share, and what not.
func TestPodsHaveTheirOwnNamespaces(t *testing.T) {
	n := node.Start(t, node.Options{})
	n.Crictl("pull", busybox)
	noLeaks(t, n)
	one, two := runPod(t, n, "one", nil), runPod(t, n, "two", nil)
	a, b, c := one.run("a", sleeper()), one.run("b", sleeper()), two.run("c", sleeper())
	of := func(id, kind string) string {
		return n.Crictl("exec", "-s", id, "readlink", "/proc/self/ns/"+kind)
	}
	for _, kind := range []string{"net", "ipc", "uts"} {
		if of(a, kind) != of(b, kind) {
			t.Errorf("containers of one pod have different %s namespaces", kind)
		}
		if of(a, kind) == of(c, kind) {
			t.Errorf("containers of two pods share the %s namespace", kind)
		}
	}
	for _, kind := range []string{"pid", "mnt"} {
		if of(a, kind) == of(b, kind) {
			t.Errorf("containers of one pod share the %s namespace", kind)
		}
	}
}

var freePort = node.FreePort

// hostAddress returns an IPv4 address of this machine that is not a loopback one.
func hostAddress(t *testing.T) string {
	t.Helper()
	address := globalAddress(t, true)
	if address == "" {
		t.Skip("this machine has no IPv4 address but its loopback's: there is no world to reach")
	}
	return address
}

// globalAddress returns an address of the family that others can use, or "".
func globalAddress(t *testing.T, four bool) string {
	t.Helper()
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		if ip, ok := a.(*net.IPNet); ok && (ip.IP.To4() != nil) == four && ip.IP.IsGlobalUnicast() {
			return ip.IP.String()
		}
	}
	return ""
}
