package attack

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestExecJoin: what joins a container to execute a command in it brings nothing of the
// node's along, from its first instruction on.
func TestExecJoin(t *testing.T) {
	c := newCage(t)
	for _, a := range []struct {
		name string
		inmate
	}{
		{"as it comes", inmate{pid: ownPID}},
		{"SYS_PTRACE", inmate{pid: ownPID, caps: []string{"SYS_PTRACE"}}},
		{"shared PID", inmate{pid: podPID, caps: []string{"SYS_PTRACE"}}},
		{"own users", inmate{pid: ownPID, users: ownUsers(), caps: []string{"SYS_PTRACE"}}},
	} {
		t.Run(a.name, func(t *testing.T) {
			c := c.in(t)
			id := c.run(a.inmate)
			var out string
			done := make(chan struct{})
			go func() {
				defer close(done)
				out = c.exec(id, "/attack", "escape-watch", "20", c.secret)
			}()
			for running(done) {
				c.exec(id, "true")
			}
			c.repelled(out)
			t.Log(out)
		})
	}
}

func running(done <-chan struct{}) bool {
	select {
	case <-done:
		return false
	default:
		return true
	}
}

// patience ends a search for joining processes that never come.
const patience = time.Minute

// watchJoins looks into every process that comes, as fast as it can: args are how many,
// and a secret.
func watchJoins(args []string) error {
	enough, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	own, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	known := map[int]bool{}
	seen := 0
	for end := time.Now().Add(patience); seen < enough && time.Now().Before(end); {
		for pid := nextPID(known); pid != 0; pid = nextPID(known) {
			known[pid] = true
			proc := "/proc/" + strconv.Itoa(pid)
			exe, _ := os.Readlink(proc + "/exe")
			if exe == own {
				continue
			}
			seen++
			lookJoining(proc, args[1])
		}
	}
	if seen < enough {
		return fmt.Errorf("only %d processes were seen", seen)
	}
	fmt.Println(seen, "processes")
	return nil
}

var procDir *os.File

func nextPID(known map[int]bool) int {
	if procDir == nil {
		procDir, _ = os.Open("/proc")
	}
	_, _ = procDir.Seek(0, 0)
	names, _ := procDir.Readdirnames(-1)
	for _, n := range names {
		if pid, err := strconv.Atoi(n); err == nil && !known[pid] {
			return pid
		}
	}
	return 0
}

// lookJoining tries to reach the node's files through a process that joins.
func lookJoining(proc, secret string) {
	for _, dir := range []string{"root", "cwd"} {
		for _, path := range []string{secret, "../../../../../../../../.." + secret} {
			if b, err := os.ReadFile(proc + "/" + dir + "/" + path); err == nil {
				got("%s/%s/%s: %s", proc, dir, path, b)
			}
		}
	}
	names, _ := os.ReadDir(proc + "/fd")
	for _, n := range names {
		file := proc + "/fd/" + n.Name()
		to, _ := os.Readlink(file)
		for _, path := range []string{secret, "../../../../../../../../../.." + secret} {
			if b, err := os.ReadFile(file + "/" + path); err == nil {
				got("%s → %s leads to the secret: %s", file, to, b)
			}
		}
	}
	if f, err := os.OpenFile(proc+"/exe", os.O_WRONLY, 0); err == nil {
		to, _ := os.Readlink(proc + "/exe")
		if strings.Contains(to, "run") {
			got("the runtime's program %s can be written to", to)
		}
		f.Close()
	}
}

// lookAtSelf reports what this process, which was started by an exec or as a
// container's first, has that it should not: args is a secret.
func lookAtSelf(args []string) error {
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	for _, n := range names {
		fd, _ := strconv.Atoi(n.Name())
		to, err := os.Readlink("/proc/self/fd/" + n.Name())
		if fd > 2 && err == nil && !strings.HasPrefix(to, "anon_inode:[event") && to != "/proc/self/fd" && !strings.HasSuffix(to, "/fd") {
			got("file %d: %s", fd, to)
		}
	}
	for _, v := range os.Environ() {
		if strings.HasPrefix(v, "_OCI") || strings.HasPrefix(v, "XDG_RUNTIME") || strings.HasPrefix(v, "LISTEN_") || strings.HasPrefix(v, "NOTIFY_SOCKET") {
			got("variable %s", v)
		}
	}
	for fd := range 64 {
		for _, up := range []string{"", "/..", "/../../../../../../../.."} {
			if b, err := os.ReadFile(fmt.Sprintf("/proc/self/fd/%d%s%s", fd, up, args[0])); err == nil {
				got("the secret by file %d: %s", fd, b)
			}
		}
	}
	if b, err := os.ReadFile("../../../../../../../../.." + args[0]); err == nil {
		got("the secret from the working directory: %s", b)
	}
	return nil
}

// TestFirstInstruction: a container's first process, and one that joins it, have the
// files, directory and environment that they should have.
func TestFirstInstruction(t *testing.T) {
	c := newCage(t)
	id := c.run(inmate{pid: ownPID})
	c.escape(id, "self", c.secret)
	t.Run("working directory", func(t *testing.T) {
		for fd := 3; fd < 20; fd++ {
			c := c.in(t)
			for _, up := range []string{"", "/../../../../.."} {
				id, err := c.try(inmate{pid: ownPID, workdir: fmt.Sprintf("/proc/self/fd/%d%s", fd, up)})
				if err != nil {
					continue
				}
				c.escape(id, "self", c.secret)
			}
		}
	})
}

// TestHijack: a container that may trace can make what joins its PID namespace, to
// execute a command or as another container's first process, do nothing that it could
// not do itself.
func TestHijack(t *testing.T) {
	if runtime.GOARCH != "amd64" {
		t.Skip("the program that traces is written for amd64")
	}
	c := newCage(t)
	handle := c.nodeHandle()
	unconfined := &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}
	for name, i := range map[string]inmate{
		"own PID": {pid: ownPID}, "shared PID": {pid: podPID}, "own users": {pid: ownPID, users: ownUsers()},
		"unconfined": {pid: ownPID, seccomp: unconfined},
	} {
		t.Run(name, func(t *testing.T) {
			c := c.in(t)
			i.caps = []string{"SYS_PTRACE"}
			id := c.run(i)
			var out string
			done := make(chan struct{})
			go func() {
				defer close(done)
				out = c.exec(id, "/attack", "escape-hijack", "3", handle, c.secret)
			}()
			for running(done) {
				// What it has traced may have been damaged: the exec may fail.
				_, _ = c.cri.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}, Timeout: 10})
			}
			c.repelled(out)
			t.Log(out)
		})
	}
}
