package oci

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"
)

func TestWaitMany(t *testing.T) { eachMonitor(t, testWaitMany) }

func testWaitMany(t *testing.T, e *Executor) {
	b := create(t, e, container{args: sh("until [ -e /go ]; do sleep 0.05; done; exit 11")}).start()
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if x := b.wait(); x.Code != 11 {
				t.Errorf("exit %+v", x)
			}
		})
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	if _, err := e.Wait(ctx, b.id, b.ctr); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Wait with a short context: %v", err)
	}
	check(t, os.WriteFile(filepath.Join(b.ctr.Rootfs, "go"), nil, 0o644))
	wg.Wait()
}

func TestWaitWithoutConmon(t *testing.T) {
	e := executor(t)
	b := create(t, e, container{}).start()
	if err := b.ctr.Conmon.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	if x, err := e.Wait(ctx, b.id, b.ctr); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("conmon is dead, init is not: %+v, %v", x, err)
	}
	if r, err := b.exec(0, "/bin/true"); err != nil || r.ExitCode != 0 {
		t.Errorf("exec without conmon: %+v, %v", r, err)
	}
	if err := b.Signal(context.Background(), b.id, b.ctr, syscall.SIGKILL, false); err != nil {
		t.Fatal(err)
	}
	if x := b.wait(); !x.Unknown || x.Code != 137 {
		t.Errorf("exit %+v, want unknown", x)
	}
}

func TestWaitStuckConmon(t *testing.T) {
	e := executor(t)
	b := create(t, e, container{}).start()
	if err := b.ctr.Conmon.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if err := b.Signal(context.Background(), b.id, b.ctr, syscall.SIGKILL, false); err != nil {
		t.Fatal(err)
	}
	if x := b.wait(); !x.Unknown {
		t.Errorf("exit %+v, want unknown", x)
	}
	if b.ctr.Conmon.Alive() {
		t.Error("the stuck conmon lives on")
	}
}

// A process that outlives init and writes without end keeps conmon reading.
func TestWaitLeftoverWriter(t *testing.T) { eachMonitor(t, testWaitLeftoverWriter) }

func testWaitLeftoverWriter(t *testing.T, e *Executor) {
	s := createSpec(t, e, container{pid: "host", args: sh("yes & yes & yes & yes & sleep 0.1; exit 6")})
	s.LogPath = "/dev/null"
	f, err := createAs(context.Background(), e, s)
	if err != nil {
		t.Fatal(err)
	}
	b := (&box{Executor: e, t: t, id: s.ID, ctr: f}).start()
	t.Cleanup(func() {
		if err := e.Delete(context.Background(), s.ID, f); err != nil {
			t.Error(err)
		}
	})
	if x := b.wait(); x.Code != 6 || x.Unknown {
		t.Errorf("exit %+v, want 6", x)
	}
}

// A quiet process that outlives init holds nothing up; Delete ends it.
func TestLeftoverProcess(t *testing.T) { eachMonitor(t, testLeftoverProcess) }

func testLeftoverProcess(t *testing.T, e *Executor) {
	for _, withID := range []bool{true, false} { // false: as on kernels before 6.8
		b := create(t, e, container{pid: "host", args: sh("sleep 100 & exit 0")})
		if b.ctr.MountNS.ID == 0 {
			t.Log("this kernel has no mount namespace IDs")
		}
		if !withID {
			b.ctr.MountNS.ID = 0
		}
		b.start()
		if x := b.wait(); x.Code != 0 {
			t.Errorf("exit %+v", x)
		}
		members, err := b.ctr.members()
		if err != nil || len(members) != 1 {
			t.Fatalf("left over %v, %v; want one process", members, err)
		}
		if err := e.Delete(context.Background(), b.id, b.ctr); err != nil {
			t.Error(err)
		}
		if members[0].Alive() {
			t.Error("it is alive after Delete")
		}
	}
}

func TestSharedPIDNamespace(t *testing.T) { eachMonitor(t, testSharedPIDNamespace) }

func testSharedPIDNamespace(t *testing.T, e *Executor) {
	keeper := create(t, e, container{args: sh("trap '' TERM; while :; do sleep 1; done")}).start()
	ns := filepath.Join("/proc", itoa(keeper.ctr.Init.PID), "ns/pid")
	b := create(t, e, container{pid: ns, args: sh("sleep 100 & exit 2")}).start()
	if x := b.wait(); x.Code != 2 {
		t.Errorf("exit %+v, want 2", x)
	}
	members, err := b.ctr.members()
	if err != nil || len(members) != 1 {
		t.Fatalf("left over %v, %v; want one process", members, err)
	}
	if err := e.Delete(context.Background(), b.id, b.ctr); err != nil {
		t.Error(err)
	}
	if members[0].Alive() || !keeper.ctr.Init.Alive() {
		t.Error("Delete must end the container's own processes and no others")
	}
}

// conmon writes an empty file "oom" into the directory where it was started. The node's
// monitor reads the cgroup's memory.events: TestMemoryEvents, and TestOOM of its package.
func TestOOMFile(t *testing.T) {
	e := executorWith(t, MonitorConmon)
	b := create(t, e, container{args: sh("exit 137")}).start()
	if dir, err := os.Readlink(filepath.Join("/proc", itoa(b.ctr.Conmon.PID), "cwd")); err == nil && dir != b.ctr.Bundle {
		t.Errorf("conmon runs in %s, not in the bundle %s", dir, b.ctr.Bundle)
	}
	if err := os.WriteFile(filepath.Join(b.ctr.Bundle, "oom"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if x := b.wait(); !x.OOMKilled || x.Code != 137 {
		t.Errorf("exit %+v, want an OOM kill", x)
	}
}
