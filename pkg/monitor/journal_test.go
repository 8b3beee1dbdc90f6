package monitor

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/pkg/monitor/wire"
)

// testMonitor is a monitor without a keeper, over a journal.
func testMonitor(t *testing.T, fds []int, logPath string) *container {
	t.Helper()
	j, err := openJournal(fds)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(j.mem) })
	log, err := unix.Open(logPath, unix.O_WRONLY|unix.O_APPEND|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(log) })
	m := &Monitor{journal: j, log: slog.New(slog.DiscardHandler)}
	return newContainer(m, wire.Container{ID: "c", Files: []string{wire.FileLog}, Index: 3}, []int{log})
}

// stage moves output into a slot, as a stream does.
func (c *container) stage(t *testing.T, s *slot, text string) int {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := w.WriteString(text); err != nil {
		t.Fatal(err)
	}
	w.Close()
	s.begin(c.index*streamsEach, false)
	n, err := s.stage(int(r.Fd()))
	if err != nil || n != len(text) {
		t.Fatalf("%d bytes staged: %v", n, err)
	}
	return n
}

func (c *container) feed(t *testing.T, text string) {
	t.Helper()
	s := <-c.m.journal.idle
	s.setCount(c.stage(t, s, text))
	s.setState(stateReading)
	c.record(s)
}

const batch = "o\nthree\nfo"

// read takes a batch as far as into the slot, write as far as n bytes into the log, all of
// them if n is negative.
func (c *container) read(t *testing.T, s *slot) {
	t.Helper()
	s.setCount(len(batch))
	s.setState(stateReading)
	if err := s.load(0); err != nil {
		t.Fatal(err)
	}
}

func (c *container) writePart(t *testing.T, s *slot, n int) {
	t.Helper()
	c.read(t, s)
	*s.stamp() = time.Now().UnixNano()
	atomic.StoreInt64(s.logSize(), sizeOf(c.file(fileLog)))
	s.setState(stateWriting)
	var out []byte
	f := newFormatter(nil, *s.stamp(), "stdout", func(b []byte) error { out = append(out, b...); return nil })
	if _, err := f.lines(s.input()); err != nil {
		t.Fatal(err)
	}
	if n < 0 {
		n = len(out)
	}
	if err := writeAll(c.file(fileLog), out[:n]); err != nil {
		t.Fatal(err)
	}
}

// kills are the moments at which the monitor can be killed with a batch.
var kills = map[string]func(t *testing.T, c *container, s *slot){
	"before it is noted how much was staged": func(*testing.T, *container, *slot) {},
	"before it is read":                      func(_ *testing.T, _ *container, s *slot) { s.setCount(len(batch)); s.setState(stateReading) },
	"when a part is read": func(t *testing.T, c *container, s *slot) {
		s.setCount(len(batch))
		s.setState(stateReading)
		at := len(c.m.journal.carry(s.stream()))
		if _, err := unix.Read(s.r, s.data()[at:at+3]); err != nil {
			t.Fatal(err)
		}
	},
	"when it is read":           func(t *testing.T, c *container, s *slot) { c.read(t, s) },
	"before it is written":      func(t *testing.T, c *container, s *slot) { c.writePart(t, s, 0) },
	"when a line is half there": func(t *testing.T, c *container, s *slot) { c.writePart(t, s, 20) },
	"when a line is there":      func(t *testing.T, c *container, s *slot) { c.writePart(t, s, 60) },
	"when it is written":        func(t *testing.T, c *container, s *slot) { c.writePart(t, s, -1) },
	"before the rest is kept": func(t *testing.T, c *container, s *slot) {
		c.writePart(t, s, -1)
		s.setState(stateWritten)
	},
	"when the rest is half kept": func(t *testing.T, c *container, s *slot) {
		c.writePart(t, s, -1)
		s.setState(stateWritten)
		copy(c.m.journal.mem[carryAt+s.stream()*maxPiece:], "f")
	},
	"when the rest is kept": func(t *testing.T, c *container, s *slot) {
		c.writePart(t, s, -1)
		s.setState(stateWritten)
		s.finish()
	},
}

// TestResume: wherever the monitor is killed with a batch, the next one ends it, and each
// byte is in the log once.
func TestResume(t *testing.T) {
	for name, kill := range kills {
		t.Run(name, func(t *testing.T) {
			made, fds, err := newJournal()
			if err != nil {
				t.Fatal(err)
			}
			defer wire.CloseAll(fds)
			defer func() { _ = unix.Munmap(made.mem) }()
			path := filepath.Join(t.TempDir(), "log")
			first := testMonitor(t, fds, path)
			for _, s := range first.m.journal.slots {
				first.m.journal.idle <- s
			}
			first.feed(t, "one\ntw")
			s := <-first.m.journal.idle
			first.stage(t, s, batch)
			kill(t, first, s)

			next := testMonitor(t, fds, path)
			for _, s := range next.m.journal.slots {
				if s.state() == stateFree {
					next.m.journal.idle <- s
					continue
				}
				next.mu.Lock()
				next.resume(s)
				next.mu.Unlock()
			}
			if n := len(next.m.journal.idle); n != slots {
				t.Errorf("%d slots are free", n)
			}
			next.feed(t, "ur\nend")
			last := <-next.m.journal.idle
			last.begin(next.index*streamsEach, true)
			last.setState(stateReading)
			next.record(last)
			checkLog(t, path, "F one|F two|F three|F four|P end|")
		})
	}
}

func checkLog(t *testing.T, path, want string) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	got := ""
	for line := range bytes.Lines(text) {
		stamp, rest, _ := bytes.Cut(line, []byte(" stdout "))
		if _, err := time.Parse(time.RFC3339Nano, string(stamp)); err != nil {
			t.Errorf("%q: %v", line, err)
		}
		got += fmt.Sprintf("%s|", bytes.TrimSuffix(rest, []byte("\n")))
	}
	if got != want {
		t.Errorf("the log has %q, want %q", got, want)
	}
}
