package stats

import (
	"os/exec"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/cgroup"
	"github.com/subpod/subpod/pkg/proc"
)

// TestKept: a measurement is used again for a while that follows from what it took, for
// the same processes, and while they run.
func TestKept(t *testing.T) {
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	id, err := proc.Identify(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	c := New(Options{})
	ct := Container{Attributes: &runtimeapi.ContainerAttributes{Id: "a"}, Init: id}
	m := &measured{Stats: cgroup.Stats{At: time.Now()}}
	c.keep(ct, m, time.Hour)
	if until := time.Until(c.memory["a"].keptUntil); until > maxKept {
		t.Errorf("a measurement that took an hour is kept for %v", until)
	}
	stay := func() { c.memory["a"].keptUntil = time.Now().Add(time.Hour) } // a busy machine may stand still
	stay()
	if c.recent(ct) != m {
		t.Error("a measurement is not used again")
	}
	other := ct
	other.Init.StartTime++
	if c.recent(other) != nil {
		t.Error("a measurement is used for another process")
	}
	c.memory["a"].keptUntil = time.Now()
	if c.recent(ct) != nil {
		t.Error("a measurement is used for ever")
	}
	c.keep(ct, m, 0)
	if c.recent(ct) != nil {
		t.Error("a measurement that took no time is used again")
	}
	c.keep(ct, m, time.Hour)
	stay()
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if c.recent(ct) != nil {
		t.Error("a measurement is used for a process that has ended")
	}
}
