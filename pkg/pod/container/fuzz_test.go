package container

import (
	"path/filepath"
	"testing"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func marshal(f *testing.F, m proto.Message) []byte {
	b, err := proto.Marshal(m)
	if err != nil {
		f.Fatal(err)
	}
	return b
}

// FuzzPlan: any container configuration is refused, or keeps the rules that what comes
// after it relies on; FuzzBuild of pkg/ocispec has the rest.
func FuzzPlan(f *testing.F) {
	f.Add(marshal(f, &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "c", Attempt: 2}, Image: &runtimeapi.ImageSpec{Image: "busybox"}, LogPath: "c/0.log",
		Mounts: []*runtimeapi.Mount{{ContainerPath: "/x", Image: &runtimeapi.ImageSpec{Image: "volume"}, ImageSubPath: "a"}},
		Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
			NamespaceOptions: &runtimeapi.NamespaceOption{Pid: 3, TargetId: "t", Network: 2}}},
	}), "/var/log/pods/p", uint8(2))
	f.Add([]byte{}, "", uint8(0))
	f.Fuzz(func(t *testing.T, data []byte, logs string, mode uint8) {
		cfg := &runtimeapi.ContainerConfig{}
		if proto.Unmarshal(data, cfg) != nil || Validate(cfg) != nil {
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
	})
}
