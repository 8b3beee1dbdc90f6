package monitor

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/pkg/monitor/wire"
)

// A container was killed for want of memory when its cgroup counts such a kill at its end.
func TestOOM(t *testing.T) {
	for events, want := range map[string]bool{
		"low 0\nhigh 0\nmax 12\noom 3\noom_kill 1\noom_group_kill 0\n":  true,
		"low 0\nhigh 0\nmax 12\noom 3\noom_kill 10\noom_group_kill 1\n": true,
		// The limit was met, and memory found.
		"low 0\nhigh 0\nmax 12\noom 3\noom_kill 0\noom_group_kill 0\n": false,
		"": false,
	} {
		path := filepath.Join(t.TempDir(), "memory.events")
		if err := os.WriteFile(path, []byte("oom_kill 0\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		m := &Monitor{log: slog.New(slog.DiscardHandler)}
		c := newContainer(m, wire.Container{ID: "c", Files: []string{wire.FileEvents}}, []int{fd})
		if err := os.WriteFile(path, []byte(events), 0o600); err != nil {
			t.Fatal(err)
		}
		c.setExit(wire.Exit{Status: 9, At: time.Now()})
		if c.exit.OOM != want || c.state.OOM != want {
			t.Errorf("%q: %+v, want %t", events, c.exit, want)
		}
		c.closeFiles()
	}
}
