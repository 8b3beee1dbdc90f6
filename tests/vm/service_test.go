package vm

import (
	"context"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/client"
)

// property is one of the service's, as systemd tells it.
func property(t *testing.T, name string) string {
	t.Helper()
	return in(t, "systemctl --user show --value -p "+name+" subpod")
}

// TestReload: systemd's reload replaces the server, and containers do not notice.
func TestReload(t *testing.T) {
	for _, driver := range []string{"cgroupfs", "systemd"} {
		t.Run(driver, func(t *testing.T) {
			c := start(t, "[runtime]\ncgroup_manager = \""+driver+"\"")
			p := runPod(t, c, "", "")
			id := p.start("while :; do sleep 1; done", &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 64 * mib})
			main, server, init := property(t, "MainPID"), pgrep(t, "subpod-server"), inits(t, "while :; do sleep 1; done")
			in(t, "systemctl --user reload subpod")
			waitReady(t, c)
			if after := property(t, "MainPID"); after != main || property(t, "ActiveState") != "active" {
				t.Errorf("main process %s, was %s; state %s", after, main, property(t, "ActiveState"))
			}
			if after := pgrep(t, "subpod-server"); after == server || after == "" {
				t.Errorf("server %q, was %q", after, server)
			}
			if after := inits(t, "while :; do sleep 1; done"); after != init || init == "" {
				t.Errorf("container's process %q, was %q", after, init)
			}
			if got := p.file(id, "memory.max"); got != "67108864" {
				t.Errorf("memory.max %s after the reload", got)
			}
			// The new server still knows what the container may use, and can change it.
			_, err := c.UpdateContainerResources(t.Context(), &runtimeapi.UpdateContainerResourcesRequest{ContainerId: id,
				Linux: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 32 * mib}})
			if err != nil {
				t.Fatal(err)
			}
			if got := p.file(id, "memory.max"); got != "33554432" {
				t.Errorf("memory.max %s after the update", got)
			}
			p.start("sleep 1000", nil)
			pod := p.id
			p.remove()
			if left := cgroups(t, pod); len(left) > 0 {
				t.Errorf("left after the pod: %q", left)
			}
		})
	}
}

// pgrep returns the PIDs whose command line ends like that.
func pgrep(t *testing.T, command string) string {
	t.Helper()
	return strings.Join(strings.Fields(as(t, "root", "pgrep -f -- '"+command+"$' || true")), " ")
}

// inits returns the first processes of containers whose command line has the text. A shell
// of theirs that has forked, and not yet executed anything, has the same.
func inits(t *testing.T, text string) string {
	t.Helper()
	out := in(t, `ps -o pid=,ppid= -p "$(pgrep -d , -f -- '`+text+`')" |
		awk '{ parent[$1] = $2 } END { for (p in parent) if (!(parent[p] in parent)) print p }' | sort -n`)
	return strings.Join(strings.Fields(out), " ")
}

// ticker is a shell script that writes a word and a number, 0, 1, 2 …, every second, and
// starts no process for it: fifty that do are all that the machine can bear. tickerName is
// a part of it.
func ticker(word string) string {
	return "mkfifo /tmp/t; exec 3<>/tmp/t; i=0; while :; do echo " + word + " $i; i=$((i+1)); " + tickerName + "; done"
}

const tickerName = "read -t 1 x <&3"

func waitReady(t *testing.T, c *client.Client) {
	t.Helper()
	for deadline := time.Now().Add(3 * time.Minute); ; time.Sleep(200 * time.Millisecond) {
		_, err := c.Status(t.Context(), &runtimeapi.StatusRequest{})
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// TestStop: stopping the service ends its pods and leaves nothing.
func TestStop(t *testing.T) {
	for _, driver := range []string{"cgroupfs", "systemd"} {
		t.Run(driver, func(t *testing.T) {
			in(t, "systemctl --user stop subpod")
			before := left(t)
			c := start(t, "[runtime]\ncgroup_manager = \""+driver+"\"")
			p := runPod(t, c, "", "")
			p.start("trap '' TERM; while :; do sleep 1; done", nil)
			id := p.id
			p.id = "" // it goes with the node
			in(t, "systemctl --user stop subpod")
			if after := left(t); after != before {
				t.Errorf("there was:\n%s\nand is after the stop:\n%s", before, after)
			}
			if left := cgroups(t, id); len(left) > 0 && driver == "cgroupfs" {
				t.Errorf("cgroups left: %q", left)
			}
			if result := property(t, "Result"); result != "success" {
				t.Errorf("the service's result is %s", result)
			}
			// The next daemon shows what was there, ended.
			c = start(t, "[runtime]\ncgroup_manager = \""+driver+"\"")
			resp, err := c.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id})
			if err != nil {
				t.Fatal(err)
			}
			if resp.Status.State != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
				t.Errorf("after the node's end the pod is %s", resp.Status.State)
			}
			if _, err := c.RemovePodSandbox(t.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id}); err != nil {
				t.Fatal(err)
			}
			// The pod's slice, empty, is systemd's until then.
			if left := cgroups(t, id); len(left) > 0 {
				t.Errorf("cgroups left after the pod's removal: %q", left)
			}
		})
	}
}

// left lists the user's processes that are no part of a session, the service's
// cgroups, and mounts.
func left(t *testing.T) string {
	t.Helper()
	return as(t, "root", `
		ps -u `+User+` -o comm= | grep -vE '^(systemd|\(sd-pam\)|sshd|bash|ps|dbus-daemon)' | sort
		find `+manager+` -mindepth 1 -type d -path '*subpod.service*' | sort
		findmnt -rn -o TARGET | grep -E 'subpod|/home' | sort
		ls -A /run/user/1000/subpod/node 2>/dev/null || true`)
}

// TestCgroupParent: containers go where a kubelet says, by path and by slice.
func TestCgroupParent(t *testing.T) {
	for _, test := range []struct{ driver, parent, dir string }{
		{"cgroupfs", "/kubepods/burstable/podabc", service + "/kubepods/burstable/podabc"},
		{"systemd", "/kubepods.slice/kubepods-burstable.slice", manager + "/kubepods.slice/kubepods-burstable.slice"},
	} {
		t.Run(test.driver, func(t *testing.T) {
			c := start(t, "[runtime]\ncgroup_manager = \""+test.driver+"\"")
			p := runPod(t, c, "", test.parent)
			id := p.start("sleep 1000", &runtimeapi.LinuxContainerResources{CpuPeriod: 100000, CpuQuota: 50000})
			for _, dir := range cgroups(t, id) {
				if !strings.HasPrefix(dir, test.dir+"/") {
					t.Errorf("the container's cgroup is %s, want it below %s", dir, test.dir)
				}
			}
			if got := p.file(id, "cpu.max"); got != "50000 100000" {
				t.Errorf("cpu.max %s", got)
			}
			p.remove()
			if left := cgroups(t, id); len(left) > 0 {
				t.Errorf("cgroups left: %q", left)
			}
			// The parent itself is its maker's, who may have limits on it.
			as(t, "root", "test -d "+test.dir)
			for _, bad := range []string{"/../outside", "kubepods\n"} {
				_, err := c.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: &runtimeapi.PodSandboxConfig{
					Metadata: &runtimeapi.PodSandboxMetadata{Name: "bad", Uid: bad, Namespace: "vm"},
					Linux:    &runtimeapi.LinuxPodSandboxConfig{CgroupParent: bad},
				}})
				if err == nil || !strings.Contains(err.Error(), "bad cgroup parent") {
					t.Errorf("cgroup_parent %q: %v", bad, err)
				}
			}
		})
	}
}

// TestShell: a daemon that is started from a shell gets a cgroup of its own from
// systemd, so that limits work there too.
func TestShell(t *testing.T) {
	in(t, "systemctl --user stop subpod; rm -rf ~/.config/subpod")
	in(t, "setsid ~/.local/bin/subpod daemon >~/daemon.log 2>&1 & echo $! >~/daemon.pid")
	t.Cleanup(func() {
		ctx := context.Background()
		_, err := machine.Run(ctx, User, "kill $(cat daemon.pid); for i in $(seq 100); do kill -0 $(cat daemon.pid) 2>/dev/null || exit 0; sleep .2; done; exit 1")
		if err != nil {
			t.Error(err)
		}
		if t.Failed() {
			log, _ := machine.Run(ctx, User, "cat daemon.log")
			t.Log(log)
		}
	})
	in(t, "for i in $(seq 300); do grep -q msg=serving daemon.log && exit 0; sleep .2; done; cat daemon.log >&2; exit 1")
	c, err := client.Dial(local)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	checkStatus(t, c, "cgroupfs")
	p := runPod(t, c, "", "")
	id := p.start("sleep 1000", &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 64 * mib})
	if got := p.file(id, "memory.max"); got != "67108864" {
		t.Errorf("memory.max %s", got)
	}
	where := cgroups(t, id)
	if len(where) != 1 || !strings.Contains(where[0], "/app.slice/subpod-daemon-") {
		t.Errorf("the container's cgroup is %q", where)
	}
	p.remove()
}

// TestNoDelegation: a service without Delegate= runs pods without limits, and says
// so.
func TestNoDelegation(t *testing.T) {
	in(t, `systemctl --user stop subpod; mkdir -p ~/.config/systemd/user/subpod.service.d
		printf '[Service]\nDelegate=no\nExecStartPre=/bin/sh -c "sleep 1000 & exit 0"\nKillMode=control-group\n' >~/.config/systemd/user/subpod.service.d/no.conf
		systemctl --user daemon-reload`)
	t.Cleanup(func() {
		_, err := machine.Run(context.Background(), User, "rm -r ~/.config/systemd/user/subpod.service.d; systemctl --user daemon-reload; systemctl --user stop subpod")
		if err != nil {
			t.Error(err)
		}
	})
	c := start(t, "")
	if cond := limitsCondition(t, c); cond.Status || !strings.Contains(cond.Message, "Delegate=yes") {
		t.Errorf("the status says %v", cond)
	}
	p := runPod(t, c, "", "/kubepods/podx")
	id := p.start("sleep 1000", &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 64 * mib})
	stats, err := c.ContainerStats(t.Context(), &runtimeapi.ContainerStatsRequest{ContainerId: id})
	if err != nil || stats.Stats.GetMemory().GetWorkingSetBytes().GetValue() == 0 {
		t.Errorf("statistics %v, %v", stats, err)
	}
	if _, err := c.UpdateContainerResources(t.Context(), &runtimeapi.UpdateContainerResourcesRequest{ContainerId: id,
		Linux: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 32 * mib}}); err != nil {
		t.Logf("update without cgroups: %v", err)
	}
	p.remove()
}

func limitsCondition(t *testing.T, c *client.Client) *runtimeapi.RuntimeCondition {
	t.Helper()
	status, err := c.Status(t.Context(), &runtimeapi.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, cond := range status.Status.Conditions {
		if cond.Type == "ResourceLimits" {
			return cond
		}
	}
	t.Fatal("the status does not tell about limits")
	return nil
}

// TestPartialDelegation: without the administrator's drop-in some controllers are
// missing. Their limits are left out, the others are set.
func TestPartialDelegation(t *testing.T) {
	const dropIn = "/etc/systemd/system/user@.service.d/delegate.conf"
	again := "systemctl daemon-reload; systemctl restart user@1000"
	as(t, "root", "printf '[Service]\\nDelegate=\\nDelegate=memory pids\\n' >/run/delegate.conf; cp "+dropIn+" /run/delegate.orig; cp /run/delegate.conf "+dropIn+"; "+again)
	t.Cleanup(func() {
		_, err := machine.Run(context.Background(), "root", "cp /run/delegate.orig "+dropIn+"; "+again)
		if err != nil {
			t.Error(err)
		}
	})
	c := start(t, "")
	if cond := limitsCondition(t, c); !cond.Status || !strings.Contains(cond.Message, "cpu, cpuset, io") {
		t.Errorf("the status says %v", cond)
	}
	p := runPod(t, c, "", "")
	id := p.start("sleep 1000", &runtimeapi.LinuxContainerResources{
		CpuPeriod: 100000, CpuQuota: 50000, CpusetCpus: "0", MemoryLimitInBytes: 64 * mib, Unified: map[string]string{"pids.max": "50"}})
	if got := p.exec(id, "cd /sys/fs/cgroup; cat memory.max pids.max; ls cpu.max cpuset.cpus 2>/dev/null || true"); got != "67108864\n50" {
		t.Errorf("limits %q", got)
	}
	p.remove()
}

// TestNested: a daemon inside a user namespace that someone else made divides the
// cgroup that it finds, if it is alone there.
func TestNested(t *testing.T) {
	in(t, "systemctl --user stop subpod; rm -rf ~/.config/subpod")
	in(t, `systemd-run --user -q --unit=nested -p Delegate=yes --setenv=PATH=/usr/local/bin:/usr/bin:/usr/sbin \
		unshare --map-root-user --map-auto --mount --net ~/.local/bin/subpod daemon`)
	t.Cleanup(func() {
		_, _ = machine.Run(context.Background(), User, "systemctl --user stop nested")
		if t.Failed() {
			log, _ := machine.Run(context.Background(), User, "journalctl --user -u nested --no-pager -o cat -n 30")
			t.Log(log)
		}
	})
	in(t, "for i in $(seq 300); do journalctl --user -u nested -o cat | grep -q msg=serving && exit 0; sleep .2; done; exit 1")
	c, err := client.Dial(local)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	checkStatus(t, c, "cgroupfs")
}

// TestLinger: without linger everything ends with the user's last session; with it
// the service runs on.
func TestLinger(t *testing.T) {
	c := start(t, "")
	if _, err := c.Version(t.Context(), &runtimeapi.VersionRequest{}); err != nil {
		t.Fatal(err)
	}
	gone := func() bool {
		// UserStopDelaySec= of the machine's logind is two seconds.
		out := as(t, "root", "for i in $(seq 40); do pgrep -x subpod-server >/dev/null || { echo gone; exit; }; sleep .5; done")
		return out == "gone"
	}
	machine.HangUp(User)
	if gone() {
		t.Error("with linger, the daemon ended with the session")
	}
	as(t, "root", "loginctl disable-linger "+User)
	if !gone() {
		t.Error("without linger, the daemon goes on without a session")
	}
	as(t, "root", "loginctl enable-linger "+User)
	var err error
	if local, err = machine.Forward(t.Context(), User, socket); err != nil {
		// The connection was ended: a first command makes a new one.
		in(t, "true")
		if local, err = machine.Forward(t.Context(), User, socket); err != nil {
			t.Fatal(err)
		}
	}
}
