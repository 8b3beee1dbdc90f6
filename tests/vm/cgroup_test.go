package vm

import (
	"context"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/api"
)

// TestWritableCgroup: a container that asks for it divides its cgroup: a part with a limit of
// its own ends for lack of memory, and the container goes on. Its own limits stay out of its
// reach, commands can still be executed in it, and nothing is left; also in a pod with a user
// namespace of its own, with both runtimes' ways and both drivers.
func TestWritableCgroup(t *testing.T) {
	for _, c := range []struct{ name, driver, handler, userns string }{
		{"crun", "cgroupfs", "", ""},
		{"user-namespace", "cgroupfs", "", "yes"},
		{"runc", "cgroupfs", "runc", ""},
		{"systemd", "systemd", "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			client := start(t, "[runtime]\ncgroup_manager = \""+c.driver+"\"")
			p := runPod(t, client, c.handler, "", func(p *runtimeapi.PodSandboxConfig) {
				p.Annotations = map[string]string{api.AnnotationCgroup: api.CgroupWritable}
				if c.userns != "" {
					ids := []*runtimeapi.IDMapping{{HostId: 1, Length: 60000}}
					p.Linux.SecurityContext = &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{
						UsernsOptions: &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD, Uids: ids, Gids: ids},
					}}
				}
			})
			id := p.start("exec sleep 100002", &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 64 << 20})
			dir := strings.TrimPrefix(as(t, "root", "cat /proc/$(pgrep -f 'sleep 100002$' | tail -n 1)/cgroup"), "0::")
			got := p.exec(id, `cd /sys/fs/cgroup
				mkdir main part && for pid in $(cat cgroup.procs); do echo $pid >main/cgroup.procs; done
				echo +memory >cgroup.subtree_control && echo $((16 << 20)) >part/memory.max && echo 0 >part/memory.swap.max
				(echo max >memory.max) 2>/dev/null && echo "its own limit can be lifted"
				(echo max >cgroup.max.descendants) 2>/dev/null && echo "its cgroups have no bound"
				cat memory.max cgroup.max.descendants cgroup.max.depth
				sh -c 'echo $$ >part/cgroup.procs; tail -c 40000000 /dev/zero >/dev/null'; echo "ended with $?"`)
			if got != "67108864\n1024\n12\nended with 137" {
				t.Errorf("in the container: %q", got)
			}
			if got := p.exec(id, "cat /proc/self/cgroup; ls -d /sys/fs/cgroup/part"); !strings.HasSuffix(got, "/part") {
				t.Errorf("a command after that: %q", got)
			}
			stats, err := client.ContainerStats(t.Context(), &runtimeapi.ContainerStatsRequest{ContainerId: id})
			if err != nil || stats.GetStats().GetMemory().GetWorkingSetBytes().GetValue() == 0 {
				t.Errorf("statistics: %v, %v", stats, err)
			}
			p.remove()
			if left := as(t, "root", "ls -d /sys/fs/cgroup"+dir+" 2>/dev/null || true"); left != "" {
				t.Errorf("left behind: %s", left)
			}
		})
	}
}

// TestDeepCgroup removes a privileged container that has made cgroups deeper than a path may
// be long and is in the deepest of them, with both drivers and runtimes: nothing is left, and
// nothing waits for it.
func TestDeepCgroup(t *testing.T) {
	for _, c := range []struct{ name, driver, handler string }{
		{"crun", "cgroupfs", "crun"},
		{"runc", "cgroupfs", "runc"},
		{"systemd", "systemd", "crun"},
	} {
		t.Run(c.name, func(t *testing.T) {
			start(t, "[runtime]\ncgroup_manager = \""+c.driver+"\"")
			in(t, subpod+" pull -q busybox")
			const deep = `cd /sys/fs/cgroup; n=$(printf %0200d 0); for i in $(seq 40); do mkdir $n && cd $n; done; echo $$ >cgroup.procs; echo in; exec sleep 1000`
			id := in(t, subpod+" run -d -q --name deep --privileged --runtime "+c.handler+" busybox sh -c '"+deep+"'")
			t.Cleanup(func() { _, _ = machine.Run(context.Background(), User, subpod+" rm -f -t 0 deep") })
			in(t, "for i in $(seq 100); do test \"$("+subpod+" logs deep)\" = in && exit; sleep 0.1; done; "+subpod+" logs deep; exit 1")
			in(t, "timeout 60 "+subpod+" rm -f -t 0 deep")
			if left := cgroups(t, id); len(left) != 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}
