package oci

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/subpod/subpod/pkg/proc"
)

func TestLife(t *testing.T) {
	eachHandler(t, func(t *testing.T, handler string) {
		e := executor(t)
		b := create(t, e, container{handler: handler, args: sh("echo out; echo err >&2; printf part; exit 7")})
		if _, err := b.exec(0, "/bin/true"); !errors.Is(err, ErrNotRunning) {
			t.Errorf("exec before the start: %v, want ErrNotRunning", err)
		}
		b.start()
		x := b.wait()
		if x.Code != 7 || x.Unknown || x.OOMKilled || time.Since(x.At) > time.Minute {
			t.Errorf("exit %+v, want code 7 just now", x)
		}
		if again := b.wait(); again != x {
			t.Errorf("second Wait %+v, first %+v", again, x)
		}
		want := []string{"stdout F out", "stderr F err", "stdout P part"}
		got := b.logLines()
		for _, w := range want {
			if !strings.Contains(strings.Join(got, "\n")+"\n", w+"\n") {
				t.Errorf("log %q lacks %q", got, w)
			}
		}
		if err := b.Signal(context.Background(), b.id, b.ctr, syscall.SIGTERM, false); !errors.Is(err, ErrNotRunning) {
			t.Errorf("signal after the end: %v, want ErrNotRunning", err)
		}
		if _, err := b.exec(0, "/bin/true"); !errors.Is(err, ErrNotRunning) {
			t.Errorf("exec after the end: %v, want ErrNotRunning", err)
		}
		for range 2 {
			if err := e.Delete(context.Background(), b.id, b.ctr); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := os.Stat(b.ctr.Bundle); !os.IsNotExist(err) {
			t.Errorf("bundle after Delete: %v", err)
		}
		if _, err := os.Stat(b.log); err != nil {
			t.Errorf("log after Delete: %v", err)
		}
	})
}

func TestContainerSurvivesJSON(t *testing.T) { eachMonitor(t, testContainerSurvivesJSON) }

func testContainerSurvivesJSON(t *testing.T, e *Executor) {
	b := create(t, e, container{args: sh("trap 'exit 3' TERM; echo ready; while :; do sleep 0.05; done")})
	b.start()
	data, err := json.Marshal(b.ctr)
	if err != nil {
		t.Fatal(err)
	}
	var back Container
	if err := json.Unmarshal(data, &back); err != nil || back != b.ctr {
		t.Fatalf("container %+v came back as %+v (%v)", b.ctr, back, err)
	}
	// Another Executor over the same directory, as after a restart.
	again, err := New(context.Background(), Options{
		Handlers: map[string]Handler{"crun": {Name: "crun"}}, RunDir: e.runDir, CgroupManager: "disabled",
		MonitorSocket: e.monitorSocket,
	})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the trap is set", func() bool { return len(b.logLines()) > 0 })
	if err := again.Signal(context.Background(), b.id, back, syscall.SIGTERM, false); err != nil {
		t.Fatal(err)
	}
	if x, err := again.Wait(context.Background(), b.id, back); err != nil || x.Code != 3 {
		t.Errorf("exit %+v, %v; want code 3", x, err)
	}
}

func TestSignalExitCode(t *testing.T) { eachMonitor(t, testSignalExitCode) }

func testSignalExitCode(t *testing.T, e *Executor) {
	b := create(t, e, container{}).start()
	if err := b.Signal(context.Background(), b.id, b.ctr, syscall.SIGKILL, false); err != nil {
		t.Fatal(err)
	}
	if x := b.wait(); x.Code != 128+9 || x.Unknown {
		t.Errorf("exit %+v, want 137", x)
	}
}

func TestSignalAll(t *testing.T) { eachMonitor(t, testSignalAll) }

func testSignalAll(t *testing.T, e *Executor) {
	b := create(t, e, container{args: sh("trap 'echo term; exit 4' TERM; sh -c 'trap \"echo child\" TERM; echo ready; while :; do sleep 0.02; done' & wait; wait")}).start()
	eventually(t, "the child runs", func() bool { return len(b.logLines()) == 1 })
	if err := b.Signal(context.Background(), b.id, b.ctr, syscall.SIGTERM, true); err != nil {
		t.Fatal(err)
	}
	if x := b.wait(); x.Code != 4 {
		t.Errorf("exit %+v, want 4", x)
	}
}

func TestDeleteWithoutStart(t *testing.T) {
	eachHandler(t, func(t *testing.T, handler string) {
		e := executor(t)
		b := create(t, e, container{handler: handler})
		if err := e.Delete(context.Background(), b.id, b.ctr); err != nil {
			t.Fatal(err)
		}
		if b.ctr.Init.Alive() || b.ctr.Conmon.Alive() {
			t.Error("init or conmon lives after Delete")
		}
	})
}

func TestCreateErrors(t *testing.T) {
	eachHandler(t, func(t *testing.T, handler string) {
		e := executor(t)
		_, err := tryCreate(t, e, container{handler: handler, args: []string{"/no/such"}})
		var rerr *RuntimeError
		if !errors.As(err, &rerr) || !errors.Is(err, ErrCommandNotFound) || !strings.Contains(rerr.Message, "/no/such") {
			t.Errorf("missing path: %v", err)
		}
		_, err = tryCreate(t, e, container{handler: handler, args: []string{"nosuch"}})
		if !errors.Is(err, ErrCommandNotFound) {
			t.Errorf("missing name: %v", err)
		}
		_, err = tryCreate(t, e, container{handler: handler, change: func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/x", Type: "bind", Source: "/no/such/source", Options: []string{"bind"}})
		}})
		if !errors.As(err, &rerr) || !strings.Contains(rerr.Message, "/no/such/source") || errors.Is(err, ErrCommandNotFound) {
			t.Errorf("missing bind source: %v", err)
		}
		entries, err := os.ReadDir(filepath.Join(e.runDir, "containers"))
		if err != nil || len(entries) > 0 {
			t.Errorf("bundles left after failed creates: %v, %v", entries, err)
		}
	})
}

// What is begun and not created leaves nothing, and a Pending serves once.
func TestAbandon(t *testing.T) { eachMonitor(t, testAbandon) }

func testAbandon(t *testing.T, e *Executor) {
	s := createSpec(t, e, container{})
	p, err := e.Begin(context.Background(), s.BeginSpec)
	if err != nil {
		t.Fatal(err)
	}
	conmon, err := proc.Identify(p.PID())
	if err != nil || !conmon.Alive() {
		t.Errorf("conmon %d does not wait: %v", p.PID(), err)
	}
	for range 2 {
		p.Abandon()
	}
	if conmon.Alive() {
		t.Error("the conmon of an abandoned creation is alive")
	}
	if _, err := os.Stat(s.Bundle); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the bundle is left: %v", err)
	}
	if _, err := p.Create(context.Background(), s.Spec, ""); err == nil {
		t.Error("an abandoned creation went on")
	}
	// After Create there is nothing to abandon.
	p, err = e.Begin(context.Background(), s.BeginSpec)
	if err != nil {
		t.Fatal(err)
	}
	c, err := p.Create(context.Background(), s.Spec, "")
	if err != nil {
		t.Fatal(err)
	}
	p.Abandon()
	if !c.Init.Alive() || c.Monitor != MonitorNode && !c.Conmon.Alive() {
		t.Error("Abandon after Create ended the container")
	}
	if _, err := p.Create(context.Background(), s.Spec, ""); err == nil {
		t.Error("a second Create went on")
	}
	if err := e.Start(context.Background(), s.ID, c); err != nil {
		t.Error(err)
	}
	if err := e.Delete(context.Background(), s.ID, c); err != nil {
		t.Error(err)
	}
}

func TestCreateWithoutASpecification(t *testing.T) { eachMonitor(t, testCreateWithoutASpecification) }

func testCreateWithoutASpecification(t *testing.T, e *Executor) {
	s := createSpec(t, e, container{})
	s.Spec.Root = nil
	if _, err := createAs(context.Background(), e, s); err == nil {
		t.Error("a spec without a root file system was taken")
	}
	if _, err := os.Stat(s.Bundle); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the bundle is left: %v", err)
	}
}

func TestCreateTwice(t *testing.T) { eachMonitor(t, testCreateTwice) }

func testCreateTwice(t *testing.T, e *Executor) {
	s := createSpec(t, e, container{})
	f, err := createAs(context.Background(), e, s)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := createAs(context.Background(), e, s); err == nil || !strings.Contains(err.Error(), "already exists") {
		t.Errorf("second create: %v", err)
	}
	// The failed one must not have harmed the first.
	if err := e.Start(context.Background(), s.ID, f); err != nil {
		t.Error(err)
	}
	if err := e.Delete(context.Background(), s.ID, f); err != nil {
		t.Error(err)
	}
}

func TestCreateCancelled(t *testing.T) { eachMonitor(t, testCreateCancelled) }

func testCreateCancelled(t *testing.T, e *Executor) {
	ctx, cancel := context.WithCancel(context.Background())
	s := createSpec(t, e, container{change: func(s *specs.Spec) {
		s.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{Path: "/bin/sleep", Args: []string{"sleep", "1000"}}}}
	}})
	time.AfterFunc(200*time.Millisecond, cancel)
	if _, err := createAs(ctx, e, s); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled create: %v", err)
	}
}

func TestParallelCreates(t *testing.T) { eachMonitor(t, testParallelCreates) }

func testParallelCreates(t *testing.T, e *Executor) {
	rootfs(t, e)
	var wg sync.WaitGroup
	for i := range 8 {
		c := createSpec(t, e, container{handler: handlers[i%2], args: sh("exit 5")})
		wg.Go(func() {
			ctx := context.Background()
			f, err := createAs(ctx, e, c)
			if err != nil {
				t.Error(err)
				return
			}
			if err := e.Start(ctx, c.ID, f); err != nil {
				t.Error(err)
			}
			if x, err := e.Wait(ctx, c.ID, f); err != nil || x.Code != 5 {
				t.Errorf("exit %+v, %v", x, err)
			}
			if err := e.Delete(ctx, c.ID, f); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func TestSweep(t *testing.T) { eachMonitor(t, testSweep) }

func testSweep(t *testing.T, e *Executor) {
	keep := create(t, e, container{}).start()
	var orphans []*box
	for _, c := range []container{{}, {pid: "host"}, {handler: "runc"}} {
		b, err := tryCreate(t, e, c)
		if err != nil {
			t.Fatal(err)
		}
		orphans = append(orphans, b.start())
	}
	if err := os.WriteFile(e.exitFile(newID()), []byte("0"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := e.Sweep(context.Background(), func(id string) bool { return id == keep.id }); err != nil {
		t.Error(err)
	}
	for _, b := range orphans {
		if b.ctr.Init.Alive() || b.ctr.Conmon.Alive() {
			t.Errorf("orphan of %s is alive", b.ctr.Handler)
		}
		if _, err := os.Stat(b.ctr.Bundle); !os.IsNotExist(err) {
			t.Errorf("bundle of an orphan of %s: %v", b.ctr.Handler, err)
		}
	}
	if ids, err := e.IDs(context.Background()); err != nil || len(ids) != 1 || ids[0] != keep.id {
		t.Errorf("IDs %v, %v", ids, err)
	}
	if _, err := keep.exec(0, "/bin/true"); err != nil {
		t.Errorf("the live container after the sweep: %v", err)
	}
}

// A container whose command line looks like a conmon's is not taken for one: its
// "bundle" could be any directory of the user.
func TestSweepForgedConmon(t *testing.T) {
	e := executor(t)
	victim := t.TempDir()
	if err := os.WriteFile(filepath.Join(victim, configFile), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	args := append(sh("sleep 1000; :"), "x", "--exit-dir", e.exitDir, "--cid", "forged", "--bundle", victim)
	b := create(t, e, container{args: args}).start()
	if err := e.Sweep(context.Background(), func(id string) bool { return id == b.id }); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(victim, configFile)); err != nil {
		t.Errorf("a file of the user: %v", err)
	}
	if !b.ctr.Init.Alive() {
		t.Error("the container has ended")
	}
}

func TestMissingRuntime(t *testing.T) { eachMonitor(t, testMissingRuntime) }

func testMissingRuntime(t *testing.T, e *Executor) {
	o := Options{RunDir: e.runDir, CgroupManager: "disabled", Log: e.log, Handlers: map[string]Handler{"gone": {Path: "/no/such/runtime"}}}
	if _, err := New(context.Background(), o); err == nil || !strings.Contains(err.Error(), "gone") {
		t.Errorf("a missing runtime: %v", err)
	}
	if _, err := createAs(context.Background(), e, createSpec(t, e, container{handler: "gone"})); !errors.Is(err, ErrNoHandler) {
		t.Errorf("create with an unknown handler: %v, want ErrNoHandler", err)
	}
}
