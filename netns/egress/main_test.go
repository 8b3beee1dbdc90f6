package egress

import (
	"bufio"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/netns"
)

// shelf is a Holder as the supervisor is one.
type shelf struct {
	mu    sync.Mutex
	files map[string]*os.File
}

func (s *shelf) Answers() bool { return true }

func (s *shelf) Names(prefix string) (out []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name := range s.files {
		if strings.HasPrefix(name, prefix) {
			out = append(out, name)
		}
	}
	return out
}

func (s *shelf) Take(name string) *os.File {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.files[name]
	if f == nil {
		return nil
	}
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	return os.NewFile(uintptr(fd), name)
}

func (s *shelf) Keep(name string, fd int) error {
	own, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.files[name] = os.NewFile(uintptr(own), name)
	return nil
}

func (s *shelf) Drop(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.files[name]; f != nil {
		f.Close()
		delete(s.files, name)
	}
	return nil
}

// world is a pod and a manager that switches its sockets.
type world struct {
	testing.TB
	pin   string
	shelf *shelf
	m     *Manager
}

func newWorld(t testing.TB) *world {
	t.Helper()
	dir := t.TempDir()
	pins, err := netns.Pin(t.Context(), netns.PinSpec{Dir: dir, Net: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = netns.Unpin(dir) })
	w := &world{TB: t, pin: pins.Net, shelf: &shelf{files: map[string]*os.File{}}}
	w.start()
	return w
}

// start makes the manager, or the next one after that has ended.
func (w *world) start() {
	w.Helper()
	m, err := New(Options{NetNS: func(string) string { return w.pin }, Holder: w.shelf, Log: slog.Default()})
	if err != nil {
		w.Fatal(err)
	}
	w.m = m
	w.Cleanup(m.Close)
}

// begin starts a role in the pod, under the filter; its output is read line by line.
func (w *world) begin(role string, args ...string) (*exec.Cmd, *bufio.Scanner) {
	w.Helper()
	exe, err := os.Executable()
	if err != nil {
		w.Fatal(err)
	}
	cmd := exec.Command(exe, args...)
	cmd.Env = append(os.Environ(), "TEST_EGRESS="+role)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		w.Fatal(err)
	}
	if err := w.inPod(cmd); err != nil {
		w.Fatal(err)
	}
	return cmd, bufio.NewScanner(out)
}

// inPod starts a program in the pod, under the filter.
func (w *world) inPod(cmd *exec.Cmd) error {
	return netns.In(w.pin, func() error {
		if err := w.m.Install("pod"); err != nil {
			return err
		}
		return cmd.Start()
	})
}

// run returns what a role prints.
func (w *world) run(role string, args ...string) string {
	w.Helper()
	cmd, lines := w.begin(role, args...)
	var out []string
	for lines.Scan() {
		out = append(out, lines.Text())
	}
	if err := cmd.Wait(); err != nil {
		w.Fatalf("%s: %v: %s", role, err, out)
	}
	return strings.Join(out, "\n")
}
