package vm

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/client"
)

const slice = "/sys/fs/cgroup/user.slice/user-1000.slice"

// limitSlice limits what all processes of the user may have together, as an
// administrator does, until the test ends or lift is called.
func limitSlice(t *testing.T, limit, none string) (lift func()) {
	t.Helper()
	set := "systemctl set-property --runtime user-1000.slice "
	as(t, "root", set+limit)
	lift = func() {
		if _, err := machine.Run(context.Background(), "root", set+none); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(lift)
	return lift
}

// keepers are the processes that all containers of the node depend on; "exe" are the
// node's first process and the supervisor.
func keepers(t *testing.T) string {
	t.Helper()
	return as(t, "root", "pgrep -u "+User+" -x 'systemd|subpod-node|exe|slirp4netns|conmon|fuse-overlayfs' | sort -n | tr '\\n' ' '")
}

func stillThere(t *testing.T, before string) {
	t.Helper()
	after := strings.Fields(keepers(t))
	for _, pid := range strings.Fields(before) {
		if !slices.Contains(after, pid) {
			t.Errorf("process %s is gone that containers depend on", pid)
		}
	}
}

// worker counts without an end and without another process, and works says whether it
// still does.
const worker = "mkfifo /tmp/f; exec 3<>/tmp/f; i=0; while :; do i=$((i+1)); echo $i >/tmp/n; read -t 1 x <&3; done"

func (p *pod) works(id string) {
	p.t.Helper()
	before := p.exec(id, "cat /tmp/n")
	for deadline := time.Now().Add(time.Minute); p.exec(id, "cat /tmp/n") == before; {
		if time.Now().After(deadline) {
			p.t.Errorf("the bystander does not go on: %s", before)
			return
		}
	}
}

// TestSliceMemory: all that the user has is out of memory. What is to blame is killed,
// and nothing that other containers depend on.
func TestSliceMemory(t *testing.T) {
	for _, c := range []struct{ name, hog string }{
		{"one large process", "exec tail /dev/zero"},
		// Each smaller than the user's systemd. They keep what they have read.
		{"many small processes", "for i in $(seq 40); do (head -c 6m /dev/zero | tail -n 1 | sleep 1000) & done; wait"},
	} {
		t.Run(c.name, func(t *testing.T) {
			cri := start(t, "")
			bystander := runPod(t, cri, "", "")
			id := bystander.start(worker, nil)
			p := runPod(t, cri, "", "")
			before := keepers(t)
			killed := "awk '/oom_kill /{print $2}' " + slice + "/memory.events"
			earlier := as(t, "root", killed)
			lift := limitSlice(t, "MemoryMax=$(($(cat "+slice+"/memory.current) + 128*1024*1024)) MemorySwapMax=0", "MemoryMax=infinity MemorySwapMax=infinity")
			begin := time.Now()
			hog := p.start(c.hog, nil)
			// Until then the kernel takes all that can be read from the disk again,
			// and everything is slow; the service's watchdog has ten minutes.
			as(t, "root", "for i in $(seq 500); do [ $("+killed+") -gt "+earlier+" ] && exit; sleep 1; done; exit 1")
			t.Logf("the kernel killed after %.0f s", time.Since(begin).Seconds())
			time.Sleep(10 * time.Second)
			lift()
			if strings.HasPrefix(c.hog, "exec") {
				if s := p.exited(hog); s.ExitCode != 137 || s.Reason != "OOMKilled" {
					t.Errorf("exit code %d, reason %q, want 137 and OOMKilled", s.ExitCode, s.Reason)
				}
			}
			t.Log(as(t, "root", "dmesg -c | grep 'Killed process'"))
			stillThere(t, before)
			bystander.works(id)
			p.remove()
			bystander.remove()
		})
	}
}

// TestSliceTasks: all that the user has is out of processes.
func TestSliceTasks(t *testing.T) {
	cri := start(t, "")
	bystander := runPod(t, cri, "", "")
	id := bystander.start(worker, nil)
	p := runPod(t, cri, "", "")
	before := keepers(t)
	lift := limitSlice(t, "TasksMax=$(($(cat "+slice+"/pids.current) + 100))", "TasksMax=infinity")
	// What has ended meanwhile is replaced: there is never room for long.
	p.start("mkfifo /tmp/f; exec 3<>/tmp/f; while :; do command eval 'sleep 1000 &' 2>/dev/null || read -t 1 x <&3; done", nil)
	for range 3 {
		as(t, "root", "cd "+slice+"; for i in $(seq 300); do [ $(cat pids.current) -ge $(cat pids.max) ] && exit; sleep .2; done; exit 1")
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		_, err := cri.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}})
		cancel()
		t.Logf("exec under pressure: %v", err)
		var refused *client.Error
		if !errors.As(err, &refused) || refused.Code != codes.ResourceExhausted && refused.Code != codes.Unavailable {
			t.Errorf("exec under pressure: the error is not one of a limit: %#v", err)
		}
	}
	lift()
	// Go ends a server that gets no thread: it is started again, and containers go on.
	waitReady(t, cri)
	stillThere(t, before)
	bystander.works(id)
	p.remove()
	bystander.remove()
}
