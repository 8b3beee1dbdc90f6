package crash

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/tests/leak"
	"github.com/subpod/subpod/tests/node"
)

// TestNodeDies kills the processes that keep the node. Everything in it ends; the
// next daemon knows what there was.
func TestNodeDies(t *testing.T) {
	for _, victim := range []string{"parent", "child", "supervisor"} {
		t.Run(victim, func(t *testing.T) {
			r := newRig(t, node.Options{})
			ctx := t.Context()
			before := r.warm()
			port := freePort(t)
			p, done := r.newPod(sleeper, port), r.newPod([]string{"sh", "-c", "echo last words; exit 9"})
			r.must("up", p.up(ctx))
			r.must("up", done.up(ctx))
			eventually(t, "it ends", converge, func() error { return done.isState(ctx, exited) })

			pid := r.PID()
			all := leak.Descendants(pid)
			if victim != "parent" {
				pid = descend(t, r, victim)
			}
			r.must("kill", syscall.Kill(pid, syscall.SIGKILL))
			_ = r.Wait(converge)
			eventually(t, "all processes of the node have ended", converge, func() error { return noneAlive(all) })
			r.Run()

			pods, err := r.cri.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
			r.must("list", err)
			if len(pods.Items) != 2 {
				t.Errorf("%d pods are listed, not 2", len(pods.Items))
			}
			for _, s := range pods.Items {
				if s.State != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
					t.Errorf("pod sandbox %s is %s", s.Metadata.Name, s.State)
				}
			}
			if s, err := p.status(ctx); err != nil || s.State != exited || s.ExitCode == 0 {
				t.Errorf("what ran: %v, %v", s, err)
			}
			if s, err := done.status(ctx); err != nil || s.ExitCode != 9 || s.Reason != "Error" {
				t.Errorf("what had ended: %v, %v", s, err)
			}
			if log, err := os.ReadFile(filepath.Join(done.sandbox.LogDirectory, "c.log")); err != nil || !strings.Contains(string(log), "last words") {
				t.Errorf("its log: %q, %v", log, err)
			}
			// The same port, the same names: nothing of the old node is in the way.
			next := r.newPod(sleeper, port)
			r.must("the next pod", next.up(ctx))
			_, err = next.exec(ctx, "true")
			r.must("exec", err)
			// Process numbers begin anew with the node: what the old records name are
			// other processes now.
			r.must("stop the old", p.stop(ctx))
			r.must("remove the old", p.removePod(ctx))
			r.must("remove the old", done.removePod(ctx))
			r.must("the next pod runs on", next.isState(ctx, running))
			r.must("remove", next.removePod(ctx))
			r.must("all is gone", r.settled(before))
		})
	}
}

// TestNodeDiesUnread: a node whose supervisor is killed ends also when nobody reads its log
// and the pipe is full.
func TestNodeDiesUnread(t *testing.T) {
	const fill = `mkfifo log && exec 2<>log && { dd if=/dev/zero of=log bs=4k count=1k oflag=nonblock 2>/dev/null; exec "$@"; }`
	r := newRig(t, node.Options{Prefix: []string{"sh", "-c", fill, "sh"}})
	all := leak.Descendants(r.PID())
	r.must("kill", syscall.Kill(descend(t, r, "supervisor"), syscall.SIGKILL))
	_ = r.Wait(converge)
	eventually(t, "all processes of the node have ended", converge, func() error { return noneAlive(all) })
}

// descend finds the node's first process, or the supervisor below it.
func descend(t *testing.T, r *rig, which string) int {
	t.Helper()
	for _, p := range leak.Descendants(r.PID()) {
		args, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p.PID))
		text := strings.ReplaceAll(string(args), "\x00", " ")
		if which == "supervisor" && strings.Contains(text, "supervisor") || which == "child" && strings.HasPrefix(text, "/proc/self/exe daemon") {
			return p.PID
		}
	}
	t.Fatalf("no %s below the daemon", which)
	return 0
}

func noneAlive(all []leak.Process) error {
	for _, p := range all {
		comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", p.PID))
		stat, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.PID))
		if err == nil && strings.TrimSpace(string(comm)) == p.Name && !strings.Contains(string(stat), ") Z ") {
			return fmt.Errorf("%s (%d) is alive", p.Name, p.PID)
		}
	}
	return nil
}

// TestReusedPID: while no server runs, a container and its monitor end and another
// process gets the number. It is not taken for the container, and not killed.
func TestReusedPID(t *testing.T) {
	r := newRig(t, node.Options{})
	ctx := t.Context()
	before := r.warm()
	p := r.newPod(sleeper)
	r.must("up", p.up(ctx))
	conmon, init := r.Child("conmon"), r.AwaitChild("sh")
	inner := innerPID(t, init)

	supervisor := descend(t, r, "supervisor")
	r.must("stop the supervisor", syscall.Kill(supervisor, syscall.SIGSTOP))
	defer syscall.Kill(supervisor, syscall.SIGCONT)
	r.KillServer()
	r.must("kill", syscall.Kill(conmon, syscall.SIGKILL))
	r.must("kill", syscall.Kill(init, syscall.SIGKILL))
	eventually(t, "the container is gone", converge, func() error {
		if syscall.Kill(init, 0) == nil && r.Child("sh") == init {
			return errors.New("it lives")
		}
		return nil
	})
	// The kernel gives the next process in the namespace the number that follows.
	var stranger string
	eventually(t, "another process has the number", converge, func() error {
		out, err := r.TryEnter("sh", "-c", fmt.Sprintf("echo %d >/proc/sys/kernel/ns_last_pid; sleep 1234 >/dev/null 2>&1 & echo $!", inner-1))
		stranger = strings.TrimSpace(out)
		if err == nil && stranger != fmt.Sprint(inner) {
			_, _ = r.TryEnter("kill", stranger)
			err = fmt.Errorf("it is %s, not %d", stranger, inner)
		}
		return err
	})
	r.must("go on", syscall.Kill(supervisor, syscall.SIGCONT))
	took, err := again(func(ctx context.Context) error { return p.isState(ctx, exited) })
	r.must(fmt.Sprintf("exited, after %v", took), err)
	r.must("stop", p.stop(ctx))
	r.must("remove", p.removePod(ctx))
	if _, err := r.TryEnter("kill", stranger); err != nil {
		t.Errorf("the process that got the container's number is gone: %v", err)
	}
	r.must("all is gone", r.settled(before))
}

// innerPID is a process's number in its own node.
func innerPID(t *testing.T, pid int) (inner int) {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if f := strings.Fields(line); len(f) > 2 && f[0] == "NSpid:" {
			fmt.Sscan(f[2], &inner) // host, node, container
		}
	}
	if inner == 0 {
		t.Fatalf("process %d has no number in the node: %s", pid, status)
	}
	return inner
}
