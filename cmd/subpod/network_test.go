package main

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"

	"github.com/subpod/subpod/pkg/api"
)

// TestNetworkFlags: what the flags ask for reaches the server, and a pod that is only on
// the network of all asks for nothing.
func TestNetworkFlags(t *testing.T) {
	one := func(n api.PodNetwork) api.PodNetworks { return api.PodNetworks{Networks: []api.PodNetwork{n}} }
	for args, want := range map[string]api.PodNetworks{
		"image":                  {},
		"--network pod image":    {},
		"--network bridge image": {},
		"--net back image":       one(api.PodNetwork{Name: "back"}),
		"--network a,b image":    {Networks: []api.PodNetwork{{Name: "a"}, {Name: "b"}}},
		"--network back:ip=10.1.0.5,alias=x,alias=y,mac=92:d0:c6:0a:29:33,interface_name=in0 --network pod image": {Networks: []api.PodNetwork{
			{Name: "back", IPs: []string{"10.1.0.5"}, Aliases: []string{"x", "y"}, MAC: "92:d0:c6:0a:29:33", Interface: "in0"}, {Name: "pod"}}},
		"--ip 10.88.0.9 --ip6 fd00::9 --mac-address 92:d0:c6:0a:29:33 image": one(api.PodNetwork{Name: "pod", IPs: []string{"10.88.0.9", "fd00::9"}, MAC: "92:d0:c6:0a:29:33"}),
		"--network back --network-alias x --network-alias y image":           one(api.PodNetwork{Name: "back", Aliases: []string{"x", "y"}}),
		"--add-host a;b:192.0.2.1 --add-host v6:[2001:db8::1] --add-host g=host-gateway image": {Hosts: []api.HostNames{
			{IP: "192.0.2.1", Names: []string{"a", "b"}}, {IP: "2001:db8::1", Names: []string{"v6"}}, {IP: "host-gateway", Names: []string{"g"}}}},
	} {
		pod, _, err := configsOf(t, strings.Fields(args)...)
		if err != nil {
			t.Errorf("%s: %v", args, err)
			continue
		}
		var got api.PodNetworks
		if text, ok := pod.Annotations[api.AnnotationNetworks]; ok {
			if err := json.Unmarshal([]byte(text), &got); err != nil {
				t.Fatal(err)
			}
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, want %+v", args, got, want)
		}
	}
	for args, want := range map[string]string{
		"--network container:x image":            "play",
		"--network slirp4netns:mtu=1 image":      "node.uplink",
		"--network host:ip=1.2.3.4 image":        "has no options",
		"--network host --network a image":       "cannot be combined",
		"--network none --ip 1.2.3.4 image":      "cannot be combined",
		"--network a --network b --ip 1.2 image": "for one network",
		"--network a:ip image":                   "OPTION=VALUE",
		"--network a:color=red image":            "unknown option",
		"--network a,b:ip=10.0.0.1 image":        "one network",
		"--ip 1.2.3 image":                       "invalid address",
		"--mac-address 1 image":                  "invalid hardware address",
		"--dns none image":                       "--dns",
		"--egress fast image":                    "--egress",
		"--add-host a image":                     "--add-host",
		"--add-host a:b image":                   "--add-host",
	} {
		if _, _, err := configsOf(t, strings.Fields(args)...); !errors.Is(err, errUsage) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", args, err, want)
		}
	}
}

// TestNetworkCreateFlags: what "network create" cannot do, it says.
func TestNetworkCreateFlags(t *testing.T) {
	got, err := (&networkCreate{driver: "bridge", ipam: "host-local", subnets: []string{"10.1.0.0/24", "fd01::/64"}, gateways: []string{"10.1.0.1"},
		ipRange: "10.1.0.128/25", options: []string{"mtu=1400", "isolate=true"}, labels: []string{"a=b", "c"}}).network([]string{"x"})
	if err != nil || got.Name != "x" || got.MTU != 1400 || got.Labels["a"] != "b" || !got.DNS ||
		!reflect.DeepEqual(got.Subnets, []api.NetworkSubnet{{Subnet: "10.1.0.0/24", Gateway: "10.1.0.1", Range: "10.1.0.128/25"}, {Subnet: "fd01::/64"}}) {
		t.Errorf("%+v, %v", got, err)
	}
	for want, o := range map[string]networkCreate{
		"--driver":      {driver: "macvlan", ipam: "host-local"},
		"--ipam-driver": {driver: "bridge", ipam: "dhcp"},
		"--gateway":     {driver: "bridge", ipam: "host-local", gateways: []string{"10.1.0.1"}},
		"--subnet":      {driver: "bridge", ipam: "host-local", subnets: []string{"a", "b", "c"}},
		"--opt":         {driver: "bridge", ipam: "host-local", options: []string{"vlan=3"}},
	} {
		if _, err := o.network(nil); !errors.Is(err, errUsage) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}

// TestEgressFlag: what a pod asks for, and that it asks for nothing by itself.
func TestEgressFlag(t *testing.T) {
	for args, want := range map[string]string{"image": "", "--egress switched image": api.EgressSwitched, "--egress uplink image": api.EgressUplink} {
		pod, _, err := configsOf(t, strings.Fields(args)...)
		if err != nil {
			t.Fatal(err)
		}
		if got := pod.Annotations[api.AnnotationEgress]; got != want {
			t.Errorf("%s: %q, want %q", args, got, want)
		}
	}
}
