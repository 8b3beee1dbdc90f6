package cri

import (
	"strings"
	"testing"

	"github.com/subpod/subpod/tests/node"
)

// serviceRules are of the shape that kube-proxy writes in its nftables mode: verdict
// maps of services, a random choice of endpoints, NAT by connection tracking.
const serviceRules = `
table ip kube-proxy {
	map service-ips { type ipv4_addr . inet_proto . inet_service : verdict; }
	map service-nodeports { type inet_proto . inet_service : verdict; }
	set cluster-ips { type ipv4_addr; }
	chain nat-prerouting { type nat hook prerouting priority dstnat; policy accept; jump services; }
	chain nat-output { type nat hook output priority -100; policy accept; jump services; }
	chain nat-postrouting { type nat hook postrouting priority srcnat; policy accept; jump masquerading; }
	chain filter-input { type filter hook input priority filter - 1; policy accept; ct state new jump nodeport; }
	chain filter-forward { type filter hook forward priority filter - 1; policy accept; ct state invalid drop; }
	chain nodeport { }
	chain masquerading { mark and 0x4000 == 0 return; mark set mark xor 0x4000; masquerade fully-random; }
	chain services { ip daddr . meta l4proto . th dport vmap @service-ips; fib daddr type local ip daddr != 127.0.0.0/8 meta l4proto . th dport vmap @service-nodeports; }
	chain endpoint-a { ip saddr 10.88.0.2 mark set mark or 0x4000; meta l4proto tcp dnat to 10.88.0.2:80; }
	chain endpoint-b { meta l4proto tcp dnat to 10.88.0.3:80; }
	chain service-x { numgen random mod 2 vmap { 0 : goto endpoint-a, 1 : goto endpoint-b }; }
}
add element ip kube-proxy service-ips { 10.96.0.10 . tcp . 80 : goto service-x }
add element ip kube-proxy service-nodeports { tcp . 30080 : goto service-x }
`

// TestKubeProxyCanWork checks what kube-proxy needs of the node network namespace, at
// the level of rules and sysctls. The real one is not built for this.
func TestKubeProxyCanWork(t *testing.T) {
	n := node.Start(t, node.Options{})
	rules := strings.ReplaceAll(serviceRules, "'", "")
	n.Enter("sh", "-c", "printf '%s' '"+rules+"' | nft -f -")
	expect(t, "rules", n.Enter("nft", "list", "table", "ip", "kube-proxy"), "numgen random mod 2", "masquerade fully-random")
	for _, sysctl := range []string{
		"net/netfilter/nf_conntrack_tcp_timeout_established", "net/netfilter/nf_conntrack_tcp_timeout_close_wait",
		"net/netfilter/nf_conntrack_tcp_be_liberal", "net/netfilter/nf_conntrack_udp_timeout",
		"net/ipv4/conf/all/route_localnet", "net/ipv4/ip_forward",
	} {
		n.Enter("sh", "-c", "v=$(cat /proc/sys/"+sysctl+") && echo $v >/proc/sys/"+sysctl)
	}
	// The machine's own: kube-proxy leaves it alone with conntrack.maxPerCore and min 0.
	n.Enter("cat", "/proc/sys/net/netfilter/nf_conntrack_max")
	n.Enter("nft", "delete", "table", "ip", "kube-proxy")
}
