package crash

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/subpod/subpod/tests/node"
)

// monitorName is the node's monitor, where the configuration asks for it.
const monitorName = "subpod-monitor"

const withMonitor = "[runtime]\nmonitor = \"subpod\"\n"

// TestMonitorKilled kills the monitor, the server, and both, while a container writes: all
// lines are in the log, once and in order, and its exit code is known.
func TestMonitorKilled(t *testing.T) {
	r := newRig(t, node.Options{Config: withMonitor})
	before := r.warm()
	const lines = 20_000
	for name, kill := range map[string]func(){
		"monitor": func() { _ = syscall.Kill(r.AwaitChild(monitorName), syscall.SIGKILL) },
		"server":  r.KillServer,
		"both": func() {
			_ = syscall.Kill(r.AwaitChild(monitorName), syscall.SIGKILL)
			r.KillServer()
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := r.in(t)
			ctx := t.Context()
			p := r.newPod(sleeper)
			p.container.Command = []string{"sh", "-c", fmt.Sprintf("i=0; while [ $i -lt %d ]; do i=$((i+1)); echo $i; done; exit 7", lines)}
			r.must("up", p.up(ctx))
			if r.Child(monitorName) == 0 || r.Child("conmon") != 0 {
				t.Fatal("the container is not the monitor's")
			}
			kill()
			eventually(t, "it has exited", converge, func() error { return p.isState(ctx, exited) })
			if s, err := p.status(ctx); err != nil || s.ExitCode != 7 {
				t.Errorf("it ended as %v, %v", s, err)
			}
			s, err := p.status(ctx)
			r.must("status", err)
			checkLines(t, s.LogPath, lines)
			r.must("remove", p.removePod(ctx))
			r.must("all is gone", r.settled(before))
		})
	}
}

// TestMonitorBesideConmon: a reload with another monitor in the configuration leaves
// containers theirs, and each goes on.
func TestMonitorBesideConmon(t *testing.T) {
	r := newRig(t, node.Options{})
	before := r.warm()
	ctx := t.Context()
	old, next := r.newPod(sleeper), r.newPod(sleeper)
	r.must("with conmon", old.up(ctx))
	for _, config := range []string{withMonitor, "[runtime]\nmonitor = \"conmon\"\n", withMonitor} {
		r.WriteHome(".config/subpod/subpod.toml.d/zz-monitor.toml", config)
		if out, err := r.Subpod("reload"); err != nil {
			t.Fatalf("reload: %v: %s", err, out)
		}
	}
	r.must("with the monitor", next.up(ctx))
	if r.Child(monitorName) == 0 || r.Child("conmon") == 0 {
		t.Fatal("there are not two monitors")
	}
	r.WriteHome(".config/subpod/subpod.toml.d/zz-monitor.toml", "[runtime]\nmonitor = \"conmon\"\n")
	if out, err := r.Subpod("reload"); err != nil {
		t.Fatalf("reload: %v: %s", err, out)
	}
	for _, p := range []*pod{old, next} {
		_, err := p.exec(ctx, "true")
		r.must("exec", err)
		r.must("stop", p.stop(ctx))
		if s, err := p.status(ctx); err != nil || s.ExitCode != 0 || s.Reason != "Completed" {
			t.Errorf("it ended as %v, %v", s, err)
		}
		r.must("remove", p.removePod(ctx))
	}
	r.must("all is gone", r.settled(before))
}

// checkLines checks that a log has the lines 1 to last, each once.
func checkLines(t *testing.T, path string, last int) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	next := 0
	for line := range bytes.Lines(text) {
		next++
		if !bytes.HasSuffix(line, fmt.Appendf(nil, " stdout F %d\n", next)) {
			t.Fatalf("%s has %.80q, want line %d", filepath.Base(path), line, next)
		}
	}
	if next != last {
		t.Error(errors.New("the log is not complete"), next, last)
	}
}
