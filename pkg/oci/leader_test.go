package oci

import (
	"os"
	"os/exec"
	goruntime "runtime"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/subpod/subpod/pkg/proc"
)

const leaderEnds = "SUBPOD_TEST_LEADER_ENDS"

func init() {
	if os.Getenv(leaderEnds) == "" {
		return
	}
	// The first thread, which runs this, ends alone; the others stay.
	goruntime.LockOSThread()
	go time.Sleep(time.Hour)
	_, _, _ = syscall.RawSyscall(syscall.SYS_EXIT, 0, 0, 0)
}

// A process is a container's member, which is killed with it, as long as one of its
// threads lives: of its first thread, /proc shows no namespaces after its end.
func TestMemberWithoutFirstThread(t *testing.T) {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), leaderEnds+"=1")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = cmd.Process.Kill(), cmd.Wait() }()
	for {
		st, err := proc.ReadStat(cmd.Process.Pid)
		if err != nil {
			t.Fatal(err)
		}
		if st.State == 'Z' {
			break
		}
		time.Sleep(time.Millisecond)
	}
	id, err := proc.Identify(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	self, err := proc.Identify(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	ns, err := mountNSOf(self.PID)
	if err != nil {
		t.Fatal(err)
	}
	found, err := Container{Init: self, MountNS: ns}.members()
	if err != nil || !slices.Contains(found, id) {
		t.Errorf("members are %v, %v, want %v among them", found, err, id)
	}
}
