package ocispec

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/cgroup"
	"github.com/subpod/subpod/pkg/idmap"
)

var update = flag.Bool("update", false, "write the golden files")

// goldenHost is a node with a delegated cgroup tree, independent of this machine.
func goldenHost() Host {
	return Host{
		Hostname: "node", Bounding: capNames, HardLimits: map[string]uint64{"RLIMIT_NOFILE": 4096}, Seccomp: true,
		UIDMap: []idmap.Map{{Host: 1000, Size: 1}, {Container: 1, Host: 100000, Size: 65536}},
		GIDMap: []idmap.Map{{Host: 1000, Size: 1}, {Container: 1, Host: 100000, Size: 65536}},
		Cgroup: cgroup.Delegation{
			Version: 2, Delegated: true, Controllers: []string{"cpu", "memory", "pids"}, Swap: true,
			Root: "/sys/fs/cgroup/user", Driver: cgroup.DriverCgroupfs,
		},
		RecursiveReadOnly: true, Cache: NewSeccompCache(),
		DevRoot: "/nonexistent",
	}
}

// goldenInput is what a kubelet asks for with a plain pod.
func goldenInput(t *testing.T) Input {
	root := filepath.Join(t.TempDir(), "rootfs")
	must(t, os.MkdirAll(filepath.Join(root, "etc"), 0o755))
	must(t, os.MkdirAll(filepath.Join(root, "vol"), 0o755))
	must(t, os.WriteFile(filepath.Join(root, "etc/passwd"), []byte(testPasswd), 0o644))
	must(t, os.WriteFile(filepath.Join(root, "etc/group"), []byte(testGroup), 0o644))
	return Input{
		PodID: "pod-id", ID: "container-id", Rootfs: root,
		Features: Features{RecursiveReadOnlyMounts: true, IDMappedMounts: true},
		Pod:      &runtimeapi.PodSandboxConfig{Hostname: "web", Metadata: &runtimeapi.PodSandboxMetadata{Name: "web", Namespace: "default", Uid: "uid-1"}},
		Container: &runtimeapi.ContainerConfig{
			Metadata:    &runtimeapi.ContainerMetadata{Name: "main"},
			Image:       &runtimeapi.ImageSpec{UserSpecifiedImage: "nginx:1"},
			Annotations: map[string]string{"run.oci.hooks.stdout": "/must/not/be/passed"},
			Envs:        []*runtimeapi.KeyValue{{Key: "PORT", Value: []byte("80")}},
			Linux: &runtimeapi.LinuxContainerConfig{
				Resources: &runtimeapi.LinuxContainerResources{
					CpuShares: 102, CpuPeriod: 100000, CpuQuota: 50000, MemoryLimitInBytes: 1 << 27, OomScoreAdj: 999,
					Unified: map[string]string{"memory.oom.group": "1", "io.weight": "default 100"},
				},
				SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
					Seccomp: &runtimeapi.SecurityProfile{}, MaskedPaths: []string{"/proc/kcore"}, ReadonlyPaths: []string{"/proc/sys"},
				},
			},
		},
		Image:      v1.ImageConfig{Entrypoint: []string{"/start"}, Cmd: []string{"-x"}, Env: []string{"A=1"}, User: "www-data:both", WorkingDir: "/srv", StopSignal: "SIGQUIT"},
		Namespaces: Namespaces{Net: "/pins/net", IPC: "/pins/ipc", UTS: "/pins/uts"},
		Files:      Files{ResolvConf: "/pod/resolv.conf", Hosts: "/pod/hosts", Hostname: "/pod/hostname", Shm: "/pod/shm"},
		Host:       goldenHost(), CgroupsPath: "/user/kubepods/pod1/container-id",
	}
}

func TestGolden(t *testing.T) {
	for name, change := range map[string]func(*testing.T, *Input){
		"kubelet": func(*testing.T, *Input) {},
		"privileged": func(_ *testing.T, in *Input) {
			in.secctx().Privileged = true
			in.Namespaces.PID = PIDNode
		},
		"host-namespaces": func(_ *testing.T, in *Input) {
			in.Namespaces = Namespaces{PID: PIDNode}
			in.Host.Owned = func(string, string) bool { return false }
			in.Pod.Hostname = ""
		},
		"tty-no-cgroups": func(_ *testing.T, in *Input) {
			in.Container.Tty = true
			in.Host.Cgroup = cgroup.Delegation{Version: 1, Driver: cgroup.DriverDisabled}
			in.Files = Files{}
			in.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 65536, Soft: 65536}}
			in.secctx().ReadonlyRootfs, in.secctx().NoNewPrivs = true, true
		},
		"mounts": func(_ *testing.T, in *Input) {
			vol := filepath.Join(in.Rootfs, "vol")
			in.Mounts = []*runtimeapi.Mount{
				{ContainerPath: "/a/b/c", HostPath: vol},
				{ContainerPath: "/a", HostPath: vol, Readonly: true, MountOptions: []string{"noexec"}},
				{ContainerPath: "/etc/hosts", HostPath: filepath.Join(in.Rootfs, "etc/passwd")},
				{ContainerPath: "/dev/shm", HostPath: vol, Readonly: true, RecursiveReadOnly: true},
				{ContainerPath: "/image", HostPath: vol, Image: &runtimeapi.ImageSpec{Image: "i"}},
			}
			in.Host.MountFlags = func(string) []string { return []string{"nosuid", "nodev"} }
		},
		"writable-cgroup": func(_ *testing.T, in *Input) {
			in.WritableCgroup, in.Host.Cgroup.Bounded = true, true
			in.Container.Linux.Resources = nil
		},
		"user-namespace": func(_ *testing.T, in *Input) {
			in.Namespaces.User = "/pins/user"
			ids := []*runtimeapi.IDMapping{{HostId: 1, Length: 60000}}
			in.Pod.Linux = &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
				NamespaceOptions: &runtimeapi.NamespaceOption{UsernsOptions: &runtimeapi.UserNamespace{Uids: ids, Gids: ids}},
			}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			in := goldenInput(t)
			change(t, &in)
			out, err := Build(in)
			must(t, err)
			if s := out.Spec.Linux.Seccomp; s != nil {
				if out.SeccompBPF == "" || len(s.Syscalls) == 0 {
					t.Error("the seccomp profile is empty or was not compiled")
				}
				// The profile's rules are moby's and depend on the kernel.
				s.Syscalls, out.SeccompBPF = nil, "compiled"
			}
			b, err := json.MarshalIndent(out, "", "  ")
			must(t, err)
			got := strings.ReplaceAll(string(b), in.Rootfs, "ROOTFS") + "\n"
			file := filepath.Join("testdata", name+".golden.json")
			if *update {
				must(t, os.WriteFile(file, []byte(got), 0o644))
			}
			want, err := os.ReadFile(file)
			must(t, err)
			if got != string(want) {
				t.Errorf("%s differs; look at it with: go test -run TestGolden -update, git diff\n%s", file, got)
			}
		})
	}
}
