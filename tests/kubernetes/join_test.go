package kubernetes

import (
	"errors"
	"net"
	"regexp"
	"strings"
	"testing"
)

// second is the name of the node that joins.
const second = "second"

// joinRows are asserted on a cluster of two nodes of one host, each a daemon of its own.
var joinRows = map[string]func(*cluster){
	"join": func(c *cluster) { c.nodeReady(second) },
	"join-address": func(c *cluster) {
		c.eventually(func() error {
			return c.is(hostAddress(c.t), "get", "node", c.name, "-o", `jsonpath={.status.addresses[?(@.type=="InternalIP")].address}`)
		})
	},
	"join-proxy": func(c *cluster) {
		c.eventually(func() error {
			return c.is("2", "-n", "kube-system", "get", "daemonset", "kube-proxy", "-o", "jsonpath={.status.numberReady}")
		})
	},
	"join-pod": func(c *cluster) {
		c.apply(pod("there", "touch /ok; "+asleep, "readinessProbe: {exec: {command: [test, -e, /ok]}, periodSeconds: 1}", "nodeName: "+second))
		c.ready("there")
	},
	"join-api-from-pod": func(c *cluster) {
		c.apply(pod("asks", "nc -w 5 10.96.0.1 443 </dev/null", "", "restartPolicy: OnFailure\nnodeName: "+second))
		c.eventually(func() error { return c.is("Succeeded", "get", "pod", "asks", "-o", "jsonpath={.status.phase}") })
	},
	"join-drain": func(c *cluster) {
		c.kubectl("drain", second, "--ignore-daemonsets", "--force", "--timeout=60s")
		c.eventually(func() error { return c.is("", "get", "pod", "there", "--ignore-not-found", "-o", "name") })
	},
}

// hostAddress is the address of the host's default route, which both nodes reach it by.
func hostAddress(t testing.TB) string {
	conn, err := net.Dial("udp", "192.0.2.1:9") // sends nothing
	if err != nil {
		t.Skip("the host has no address but its loopback's:", err)
	}
	defer conn.Close()
	return conn.LocalAddr().(*net.UDPAddr).IP.String()
}

// TestJoin joins a second node to a control plane that calls itself by the host's address.
func TestJoin(t *testing.T) {
	if *programs == "" {
		t.Skip("the parts of Kubernetes are built by make test-kubernetes")
	}
	address := hostAddress(t)
	c := startCluster(t, "", []string{"tcp:6443"}, "--node-ip", address)
	worker := newNode(t, second, nil, c.joinFlags()...)
	worker.kubeadm("join", "--config=/etc/kubernetes/subpod/join.yaml")
	assert(t, c, joinRows)
}

// joinFlags are what "subpod kubernetes config" is told of the cluster to join.
func (c *cluster) joinFlags() []string {
	c.t.Helper()
	command, err := c.in("", "kubeadm", "--kubeconfig=/etc/kubernetes/admin.conf", "token", "create", "--print-join-command")
	must(c.t, err)
	words := regexp.MustCompile(`join (\S+) --token (\S+) .*(sha256:\S+)`).FindStringSubmatch(command)
	if words == nil {
		c.t.Fatal(errors.New("kubeadm prints " + strings.TrimSpace(command)))
	}
	return []string{"--server", words[1], "--token", words[2], "--ca-cert-hash", words[3]}
}
