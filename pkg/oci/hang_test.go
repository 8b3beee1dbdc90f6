package oci

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/subpod/subpod/pkg/proc"
)

// withFIFO mounts a FIFO as /etc/passwd: runtimes open it to look up the user's
// home, and wait for ever.
func withFIFO(t *testing.T, e *Executor) func(*specs.Spec) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(rootfs(t, e), "etc/passwd"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	fifo := filepath.Join(t.TempDir(), "passwd")
	if err := syscall.Mkfifo(fifo, 0o644); err != nil {
		t.Fatal(err)
	}
	return func(s *specs.Spec) {
		s.Mounts = append(s.Mounts, specs.Mount{Destination: "/etc/passwd", Type: "bind", Source: fifo, Options: []string{"bind"}})
	}
}

// runtimesOf returns the processes other than this one that name the Executor's
// directory, except for the conmon and init of the given containers.
func runtimesOf(t testing.TB, e *Executor, but ...Container) []string {
	t.Helper()
	pids, err := proc.PIDs()
	if err != nil {
		t.Fatal(err)
	}
	skip := map[int]bool{os.Getpid(): true}
	for _, c := range but {
		skip[c.Init.PID], skip[c.Conmon.PID] = true, true
	}
	var found []string
	for _, pid := range pids {
		dir := filepath.Join("/proc", itoa(pid))
		line, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		env, _ := os.ReadFile(filepath.Join(dir, "environ"))
		if st, err := proc.ReadStat(pid); err != nil || st.Ended() || skip[pid] {
			continue
		}
		if text := string(line) + "\x00" + string(env); strings.Contains(text, e.runDir+"/") {
			found = append(found, itoa(pid)+" "+strings.ReplaceAll(string(line), "\x00", " "))
		}
	}
	return found
}

// noRuntimes waits until no processes are left: what was killed takes its time to end on
// a busy machine.
func noRuntimes(t testing.TB, e *Executor, but ...Container) {
	t.Helper()
	var left []string
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if left = runtimesOf(t, e, but...); len(left) == 0 {
			return
		}
	}
	t.Errorf("processes are left: %q", left)
}

// A runtime that hangs in create ends with all its processes, at the context's
// end and at the bound.
func TestCreateHangs(t *testing.T) {
	eachHandler(t, func(t *testing.T, handler string) {
		e := executor(t)
		hangs := container{handler: handler, change: withFIFO(t, e)}
		ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
		defer cancel()
		if _, err := createAs(ctx, e, createSpec(t, e, hangs)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("at the end of the context: %v", err)
		}
		noRuntimes(t, e)
		e.handlers[handler].timeout = 500 * time.Millisecond
		if _, err := createAs(context.Background(), e, createSpec(t, e, hangs)); !errors.Is(err, ErrRuntimeHangs) {
			t.Errorf("at the bound: %v", err)
		}
		noRuntimes(t, e)
	})
}

// What hangs in create when the server dies is found by the next one, also when
// its conmon is gone.
func TestSweepEndsHangingCreate(t *testing.T) {
	for _, without := range []string{"", "conmon", "runtime"} {
		t.Run("without "+without, func(t *testing.T) {
			eachHandlerOf(t, MonitorConmon, func(t *testing.T, handler string) {
				e := executor(t)
				live := create(t, e, container{handler: handler})
				s := createSpec(t, e, container{handler: handler, change: withFIFO(t, e)})
				// What a server does until it dies in Create.
				p, err := e.Begin(context.Background(), s.BeginSpec)
				if err != nil {
					t.Fatal(err)
				}
				check(t, writeConfig(s.Bundle, *s.Spec, false), p.enterMounts(s.Spec))
				l := p.launch.(*conmonLaunch)
				if _, err := l.start.Write([]byte{0}); err != nil {
					t.Fatal(err)
				}
				if err := l.cmd.Wait(); err != nil {
					t.Fatal(err)
				}
				// conmon, the runtime, and the process that is to become init.
				eventually(t, "the runtime hangs", func() bool { return len(runtimesOf(t, e, live.ctr)) == 3 })
				p.close()
				time.Sleep(100 * time.Millisecond)
				conmon, err := readPID(filepath.Join(s.Bundle, conmonPIDFile))
				if err != nil {
					t.Fatal(err)
				}
				switch without {
				case "conmon":
					_ = syscall.Kill(conmon, syscall.SIGKILL)
				case "runtime":
					out, _ := exec.Command("pgrep", "-P", itoa(conmon)).Output()
					_ = exec.Command("kill", "-9", strings.TrimSpace(string(out))).Run()
				}
				if err := e.Sweep(context.Background(), func(id string) bool { return id == live.id }); err != nil {
					t.Error(err)
				}
				noRuntimes(t, e, live.ctr)
				if _, err := os.Stat(s.Bundle); !errors.Is(err, os.ErrNotExist) && without == "" {
					t.Errorf("the bundle is left: %v", err)
				}
				_ = os.RemoveAll(s.Bundle)
				live.start()
				if r, err := live.exec(0, "/bin/true"); err != nil || r.ExitCode != 0 {
					t.Errorf("the live container after the sweep: %+v, %v", r, err)
				}
			})
		})
	}
}

// passwdBecomesFIFO makes the runtime hang in an exec.
func passwdBecomesFIFO(t *testing.T, b *box) {
	t.Helper()
	if r, err := b.exec(0, sh("rm -f /etc/passwd; mkfifo /etc/passwd")...); err != nil || r.ExitCode != 0 {
		t.Fatalf("%s %v", r.Stderr, err)
	}
	t.Cleanup(func() { _ = os.Remove(filepath.Join(b.ctr.Rootfs, "etc/passwd")) })
}

// A runtime that hangs in exec ends at the bound, and with the next server's start.
func TestExecHangs(t *testing.T) {
	for _, c := range []container{{handler: "crun"}, {handler: "runc"}, {handler: "crun", pid: "host"}} {
		t.Run(c.handler+"/"+c.pid, func(t *testing.T) {
			e := executor(t)
			b := create(t, e, c).start()
			if r, err := b.exec(0, "/bin/true"); err != nil || r.ExitCode != 0 {
				t.Fatalf("%+v %v", r, err)
			}
			passwdBecomesFIFO(t, b)
			e.handlers[c.handler].timeout = 500 * time.Millisecond
			if _, err := b.exec(0, "/bin/sleep", "100"); !errors.Is(err, ErrRuntimeHangs) {
				t.Errorf("exec that hangs: %v", err)
			}
			noRuntimes(t, e, b.ctr)
			// The server dies: nobody waits for the exec any more.
			e.handlers[c.handler].timeout = time.Minute
			done := make(chan error, 1)
			go func() { _, err := b.exec(0, "/bin/sleep", "100"); done <- err }()
			eventually(t, "the runtime hangs", func() bool { return len(runtimesOf(t, e, b.ctr)) >= 2 })
			time.Sleep(100 * time.Millisecond)
			all := func(string) bool { return true }
			processes := readCommandLines()
			found := e.handlers[c.handler].abandoned(processes, all)
			for _, h := range found {
				if slices.ContainsFunc(found, func(above helper) bool { return above != h && processes.below(h.PID, above.PID) }) {
					t.Errorf("process %d is to be ended, and one above it", h.PID)
				}
			}
			if err := e.Sweep(context.Background(), all); err != nil {
				t.Error(err)
			}
			if err := <-done; err == nil {
				t.Error("the exec went well")
			}
			noRuntimes(t, e, b.ctr)
			if !b.ctr.Init.Alive() || b.ctr.Monitor != MonitorNode && !b.ctr.Conmon.Alive() {
				t.Error("the container has ended")
			}
		})
	}
}

// A command that runs is left alone by the next server.
func TestSweepLeavesRunningExec(t *testing.T) {
	eachHandler(t, func(t *testing.T, handler string) {
		e := executor(t)
		b := create(t, e, container{handler: handler}).start()
		done := make(chan error, 1)
		go func() {
			r, err := b.exec(0, sh("touch /tmp/on; while test -e /tmp/on; do sleep 0.02; done; exit 5")...)
			if err == nil && r.ExitCode != 5 {
				err = errors.New("another exit code")
			}
			done <- err
		}()
		mark := filepath.Join(b.ctr.Rootfs, "tmp/on")
		eventually(t, "the command runs, and the runtime's part in it is over", func() bool {
			_, err := os.Stat(mark)
			helpers := e.handlers[handler].helpers(readCommandLines())
			return err == nil && (handler == "crun" || len(helpers) == 0)
		})
		// Not Sweep: it removes the exec's files, which its conmon may still read.
		e.handlers[handler].killAbandoned(readCommandLines(), e.log, func(string) bool { return true })
		_ = os.Remove(mark)
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// A server that ends while it ends an exec leaves what is above the command stopped. The
// next server ends that, running or killed command and all: the container could not end
// before.
func TestSweepEndsStoppedExec(t *testing.T) {
	eachHandler(t, func(t *testing.T, handler string) {
		e := executor(t)
		b := create(t, e, container{handler: handler}).start()
		done := make(chan error, 1)
		go func() {
			_, err := b.exec(0, sh("touch /tmp/on; sleep 1000")...)
			done <- err
		}()
		eventually(t, "the command runs", func() bool {
			_, err := os.Stat(filepath.Join(b.ctr.Rootfs, "tmp/on"))
			return err == nil
		})
		above := func() (found []int) {
			for pid := range readProcesses() {
				line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
				if bytes.Contains(line, []byte(e.execDir+"/")) {
					found = append(found, pid)
				}
			}
			return found
		}
		stopped := above()
		if len(stopped) == 0 {
			t.Fatal("there is no process of the exec")
		}
		for _, pid := range stopped {
			_ = syscall.Kill(pid, syscall.SIGSTOP)
			eventually(t, "it is stopped, or has ended", func() bool {
				st, err := proc.ReadStat(pid)
				return err != nil || st.Ended() || st.State == 'T'
			})
		}
		if err := e.Sweep(t.Context(), func(string) bool { return true }); err != nil {
			t.Error(err)
		}
		eventually(t, "the exec is gone", func() bool { return len(above()) == 0 })
		<-done
		if err := e.Signal(t.Context(), b.id, b.ctr, syscall.SIGKILL, true); err != nil {
			t.Error(err)
		}
		b.wait()
	})
}

// A runtime that hangs in another call, here in a hook of delete, ends at the bound
// with what it has started. The call can be repeated.
func TestDeleteHangs(t *testing.T) {
	eachHandler(t, func(t *testing.T, handler string) {
		e := executor(t)
		mark := filepath.Join(e.runDir, "mark")
		s := createSpec(t, e, container{handler: handler, change: func(s *specs.Spec) {
			script := "test -e " + mark + " && exit; touch " + mark + "; sleep 60 & sleep 60"
			s.Hooks = &specs.Hooks{Poststop: []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", script, e.runDir + "/"}}}}
		}})
		c, err := createAs(context.Background(), e, s)
		if err != nil {
			t.Fatal(err)
		}
		e.handlers[handler].timeout = 500 * time.Millisecond
		if err := e.Delete(context.Background(), s.ID, c); !errors.Is(err, ErrRuntimeHangs) {
			t.Errorf("delete that hangs: %v", err)
		}
		noRuntimes(t, e, c)
		e.handlers[handler].timeout = runtimeTimeout
		if err := e.Delete(context.Background(), s.ID, c); err != nil {
			t.Errorf("second delete: %v", err)
		}
	})
}

// A script around a runtime that hangs when it is asked for its version holds up nobody that
// ends: the script is killed, and what it has started is not waited for.
func TestVersionHangs(t *testing.T) {
	dir := t.TempDir()
	script := filepath.Join(dir, "crun")
	if err := os.WriteFile(script, []byte("#!/bin/sh\nsleep 30\necho crun version 1.28\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	begin := time.Now()
	_, err := newRuntime(ctx, "crun", Handler{Name: "crun", Path: script}, Options{RunDir: dir})
	if took := time.Since(begin); err == nil || took > 20*time.Second {
		t.Errorf("after %v: %v", took, err)
	}
}
