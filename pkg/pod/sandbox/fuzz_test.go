package sandbox

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/idmap"
)

func marshal(f *testing.F, m proto.Message) []byte {
	b, err := proto.Marshal(m)
	if err != nil {
		f.Fatal(err)
	}
	return b
}

// FuzzPlan: any pod sandbox configuration is refused, or keeps the rules that
// what comes after it relies on.
func FuzzPlan(f *testing.F) {
	m := []*runtimeapi.IDMapping{{HostId: 65536, Length: 65536}}
	f.Add(marshal(f, &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: "n", Namespace: "ns", Uid: "u", Attempt: 1}, Hostname: "h", LogDirectory: "/var/log/pods/p",
		DnsConfig:    &runtimeapi.DNSConfig{Servers: []string{"1.1.1.1"}, Searches: []string{"a"}, Options: []string{"ndots:5"}},
		PortMappings: []*runtimeapi.PortMapping{{HostPort: 80, ContainerPort: 80, HostIp: "::1", Protocol: 2}},
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			CgroupParent: "/kubepods/pod1", Sysctls: map[string]string{"net.ipv4.conf.eth0.forwarding": "1", "kernel.shm_rmid_forced": "1"},
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{
				Network: 2, Ipc: 2, Pid: 1, UsernsOptions: &runtimeapi.UserNamespace{Uids: m, Gids: m},
			}},
		},
	}))
	f.Add([]byte{})
	node := []idmap.Map{{Container: 0, Host: 1000, Size: 1}, {Container: 1, Host: 100000, Size: 196608}}
	f.Fuzz(func(t *testing.T, data []byte) {
		cfg := &runtimeapi.PodSandboxConfig{}
		if proto.Unmarshal(data, cfg) != nil {
			return
		}
		plan, err := NewPlan("id", cfg, Host{UIDs: node, GIDs: node})
		if err != nil {
			return
		}
		for _, p := range plan.ports {
			if p.HostPort == 0 || p.ContainerPort == 0 {
				t.Errorf("port mapping %+v", p)
			}
		}
		if strings.Contains(string(plan.resolvConf), "\x00") {
			t.Errorf("resolv.conf %q", plan.resolvConf)
		}
		if maps := plan.pins.UserNS; maps != nil {
			for _, m := range append(maps.UIDs, maps.GIDs...) {
				if m.Container != 0 || !idmap.Covered(node, m.Host, m.Size) {
					t.Errorf("mapping %+v leads out of the node's IDs", m)
				}
			}
		}
	})
}
