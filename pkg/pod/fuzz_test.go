package pod

import (
	"path/filepath"
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

// FuzzPodConfig: any pod sandbox configuration is refused, or keeps the rules that
// what comes after it relies on.
func FuzzPodConfig(f *testing.F) {
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
	}), "ns", "n", "u")
	f.Add([]byte{}, "a/b", "c", "d, attempt 1)")
	node := []idmap.Map{{Container: 0, Host: 1000, Size: 1}, {Container: 1, Host: 100000, Size: 196608}}
	r := &Runtime{Options: Options{UIDs: node, GIDs: node}}
	f.Fuzz(func(t *testing.T, data []byte, namespace, name, uid string) {
		cfg := &runtimeapi.PodSandboxConfig{}
		if proto.Unmarshal(data, cfg) != nil || validatePod(cfg) != nil {
			return
		}
		for _, p := range portMappings(cfg) {
			if p.HostPort == 0 || p.ContainerPort == 0 {
				t.Errorf("port mapping %+v", p)
			}
		}
		if text, err := (DNS{}).resolvConf(cfg.DnsConfig); err == nil && strings.Contains(string(text), "\x00") {
			t.Errorf("resolv.conf %q", text)
		}
		if spec, err := r.pinSpec("/dir", cfg); err == nil && spec.UserNS != nil {
			for _, m := range append(spec.UserNS.UIDs, spec.UserNS.GIDs...) {
				if m.Container != 0 || !idmap.Covered(node, m.Host, m.Size) {
					t.Errorf("mapping %+v leads out of the node's IDs", m)
				}
			}
		}
		other := &runtimeapi.PodSandboxMetadata{Namespace: namespace, Name: name, Uid: uid, Attempt: cfg.Metadata.Attempt}
		// Fields of a later CRI are no part of a name.
		mine := &runtimeapi.PodSandboxMetadata{Namespace: cfg.Metadata.Namespace, Name: cfg.Metadata.Name, Uid: cfg.Metadata.Uid, Attempt: cfg.Metadata.Attempt}
		if !proto.Equal(mine, other) && podName(cfg.Metadata) == podName(other) {
			t.Errorf("%v and %v have one name: %s", cfg.Metadata, other, podName(other))
		}
	})
}

// FuzzContainerConfig is the same for what pkg/pod does with a container's
// configuration; FuzzBuild of pkg/ocispec has the rest.
func FuzzContainerConfig(f *testing.F) {
	f.Add(marshal(f, &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "c", Attempt: 2}, Image: &runtimeapi.ImageSpec{Image: "busybox"}, LogPath: "c/0.log",
		Mounts: []*runtimeapi.Mount{{ContainerPath: "/x", Image: &runtimeapi.ImageSpec{Image: "volume"}, ImageSubPath: "a"}},
		Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
			NamespaceOptions: &runtimeapi.NamespaceOption{Pid: 3, TargetId: "t", Network: 2}}},
	}), "/var/log/pods/p", "c", uint8(2))
	f.Add([]byte{}, "", "../../x", uint8(0))
	f.Fuzz(func(t *testing.T, data []byte, logs, other string, mode uint8) {
		cfg := &runtimeapi.ContainerConfig{}
		if proto.Unmarshal(data, cfg) != nil || validateContainer(cfg) != nil {
			return
		}
		pod := &runtimeapi.PodSandboxConfig{LogDirectory: filepath.Join("/", logs)}
		if path, err := logPath(pod, cfg); err == nil && path != "" {
			if rel, err := filepath.Rel(pod.LogDirectory, path); err != nil || !filepath.IsLocal(rel) {
				t.Errorf("log_path %q below %q is %q", cfg.LogPath, pod.LogDirectory, path)
			}
		}
		asked := cfg.GetLinux().GetSecurityContext().GetNamespaceOptions()
		has := &runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode(mode % 4), Ipc: runtimeapi.NamespaceMode(mode / 4 % 4)}
		if sharedNamespaces(has, asked) == nil {
			for _, pair := range [][2]runtimeapi.NamespaceMode{{asked.GetNetwork(), has.Network}, {asked.GetIpc(), has.Ipc}} {
				if pair[0] != runtimeapi.NamespaceMode_POD && pair[0] != pair[1] {
					t.Errorf("a container that asks for %v is let into a pod with %v", asked, has)
				}
			}
		}
		m := &runtimeapi.ContainerMetadata{Name: other, Attempt: cfg.Metadata.Attempt}
		if m.Name != cfg.Metadata.Name && containerName("pod", cfg.Metadata) == containerName("pod", m) {
			t.Errorf("%v and %v have one name", cfg.Metadata, m)
		}
	})
}
