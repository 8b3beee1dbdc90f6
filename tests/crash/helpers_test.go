package crash

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/tests/leak"
	"github.com/subpod/subpod/tests/node"
)

// saboteur runs the real program, or does what it says instead: what it is to do is in the
// program itself, since fuse-overlayfs may read no other file of the user's.
const saboteur = `#!/bin/sh
case "$*" in *%[2]s*) ;; *) exec %[1]s "$@" ;; esac
case "%[3]s" in
fail) echo "sabotage: it fails on purpose" >&2; exit 1 ;;
die) kill -KILL $$ ;;
hang) exec sleep 1000 ;;
late) %[1]s "$@"; echo "sabotage: it fails after its work" >&2; exit 1 ;;
esac
exec %[1]s "$@"
`

// sabotaged makes a node whose helper programs can be told to fail.
func sabotaged(t *testing.T) (*rig, func(program, what string)) {
	t.Helper()
	n := node.Prepare(t, node.Options{})
	var config strings.Builder
	orders := map[string]func(what string){}
	// Only the calls that make something are sabotaged; not "crun --version".
	for _, h := range []struct{ name, section, key, when string }{
		{"conmon", "[runtime]", "conmon_path", "--cid"},
		{"crun", "[runtime.handlers.crun]", "path", "create"},
		{"fuse-overlayfs", "[storage]", "mount_program", "lowerdir"},
	} {
		real, err := exec.LookPath(h.name)
		if err != nil {
			t.Fatal(err)
		}
		script := filepath.Join(n.Dir, h.name)
		orders[h.name] = func(what string) {
			text := fmt.Sprintf(saboteur, real, h.when, what)
			err := os.WriteFile(script+".new", []byte(text), 0o755)
			if err = errors.Join(err, os.Rename(script+".new", script)); err != nil {
				t.Fatal(err)
			}
		}
		orders[h.name]("")
		fmt.Fprintf(&config, "%s\n%s = %q\n", h.section, h.key, script)
	}
	n.WriteHome(".config/subpod/subpod.toml", config.String())
	n.Run()
	r := startedRig(t, n)
	return r, func(program, what string) { orders[program](what) }
}

// TestHelpersFail lets conmon, the OCI runtime and fuse-overlayfs fail, die, hang
// and fail after their work was done. The client is told, the next request
// succeeds, nothing is left.
func TestHelpersFail(t *testing.T) {
	r, order := sabotaged(t)
	before := r.warm()
	for _, program := range []string{"crun", "conmon", "fuse-overlayfs"} {
		for _, what := range []string{"fail", "die", "hang", "late"} {
			t.Run(program+" "+what, func(t *testing.T) {
				r := r.in(t)
				p := r.newPod(sleeper)
				r.must("run", p.run(t.Context()))
				order(program, what)
				patience := time.Second
				if what == "fail" { // by itself
					patience = converge
				}
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				defer cancel()
				begin := time.Now()
				err := p.create(ctx)
				took := time.Since(begin)
				order(program, "")
				switch {
				case err == nil && what != "late": // what has done its work may pass
					t.Errorf("CreateContainer succeeded although %s was to %s", program, what)
				case what == "fail" && !strings.Contains(err.Error(), "on purpose"):
					t.Errorf("the error does not carry what %s said: %v", program, err)
				}
				t.Logf("after %v: %v", took.Round(time.Millisecond), err)
				if took, err := again(p.create); err != nil {
					t.Fatalf("create again: %v after %v", err, took)
				}
				r.must("start", p.start(t.Context()))
				_, err = p.exec(t.Context(), "true")
				r.must("exec", err)
				r.must("remove", p.removePod(t.Context()))
				r.must("all is gone", r.settled(before))
			})
		}
	}
}

// TestHelpersKilled kills what belongs to a running container.
func TestHelpersKilled(t *testing.T) {
	r := newRig(t, node.Options{})
	before := r.warm()
	for _, victim := range []string{"conmon", "fuse-overlayfs", "slirp4netns", "sh"} {
		t.Run(victim, func(t *testing.T) {
			r := r.in(t)
			ctx := t.Context()
			p, bystander := r.newPod(sleeper), r.newPod(sleeper)
			r.must("up", p.up(ctx))
			if victim == "conmon" && r.Child(victim) == 0 { // the suite is run with the node's monitor
				victim = "subpod-monitor"
			}
			pid := r.AwaitChild(victim)
			r.must("the bystander", bystander.up(ctx))
			r.must("kill", syscall.Kill(pid, syscall.SIGKILL))
			switch victim {
			case "sh": // the container itself
				eventually(t, "it has exited", converge, func() error { return p.isState(ctx, exited) })
				if s, err := p.status(ctx); err != nil || s.ExitCode != 137 || s.Reason != "Error" {
					t.Errorf("a killed container: %v, %v", s, err)
				}
			case "conmon":
				_, err := p.exec(ctx, "true")
				r.must("exec without conmon", err)
				r.must("stop", p.stop(ctx))
				if s, err := p.status(ctx); err != nil || s.ExitCode != 137 || s.Reason != "ContainerStatusUnknown" {
					t.Errorf("a container without conmon ended as: %v, %v", s, err)
				}
			case "subpod-monitor":
				_, err := p.exec(ctx, "true")
				r.must("exec without the monitor", err)
				r.must("stop", p.stop(ctx))
				if s, err := p.status(ctx); err != nil || s.ExitCode != 0 || s.Reason != "Completed" {
					t.Errorf("a container whose monitor was killed ended as: %v, %v", s, err)
				}
			case "slirp4netns":
				eventually(t, "there is another one", converge, func() error {
					if r.Child(victim) == 0 {
						return errors.New("none")
					}
					return nil
				})
				_, err := p.exec(ctx, "true")
				r.must("exec", err)
			}
			took, err := again(p.stop)
			r.must(fmt.Sprintf("stop, after %v", took), err)
			// The pod goes on: the next attempt of the container runs.
			p.container.Metadata.Attempt++
			r.must("the next attempt", works(ctx, p))
			_, err = bystander.exec(ctx, "true")
			r.must("the bystander", err)
			r.must("remove", p.removePod(ctx))
			r.must("remove", bystander.removePod(ctx))
			r.must("all is gone", r.settled(before))
		})
	}
}

// TestPauseKilled: the pause process of a shared PID namespace is killed, and with it
// the containers. The pod says so and can be removed.
func TestPauseKilled(t *testing.T) {
	r := newRig(t, node.Options{})
	before := r.warm()
	p := r.newPod(sleeper)
	shared := &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_POD}
	p.sandbox.Linux.SecurityContext.NamespaceOptions = shared
	p.container.Linux.SecurityContext.NamespaceOptions = shared
	known := map[int]bool{}
	for _, d := range leak.Descendants(r.PID()) {
		known[d.PID] = true
	}
	ctx := t.Context()
	r.must("run", p.run(ctx))
	var pause int
	for _, d := range leak.Descendants(r.PID()) {
		if !known[d.PID] && d.Name == "pause" { // not what has only begun to end
			pause = d.PID
		}
	}
	r.must("create", p.create(ctx))
	r.must("start", p.start(ctx))
	if pause == 0 {
		t.Fatal("no pause process")
	}
	r.must("kill", syscall.Kill(pause, syscall.SIGKILL))
	eventually(t, "the container has ended", converge, func() error { return p.isState(ctx, exited) })
	p.container.Metadata.Attempt++
	if err := p.create(ctx); err == nil {
		t.Error("a container was created in a PID namespace that is dead")
	} else {
		t.Logf("create: %v", err)
	}
	// So that a kubelet makes another one.
	resp, err := r.cri.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.podID})
	if err != nil || resp.Status.State != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("the pod sandbox without its pause process: %v, %v", resp.GetStatus().GetState(), err)
	}
	r.must("remove", p.removePod(ctx))
	r.must("all is gone", r.settled(before))
	if err := p.start(ctx); status.Code(err) != codes.NotFound {
		t.Errorf("start of a removed container: %v", err)
	}
}
