package rootless

import (
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestWatchdog(t *testing.T) {
	for _, c := range []struct {
		usec, pid string
		want      time.Duration
		watched   bool
	}{
		{"", "", statusInterval, false},
		{"x", "", statusInterval, false},
		{"0", "", statusInterval, false},
		{"4000000", "", 2 * time.Second, true},
		{"4000000", "7", 2 * time.Second, true},
		{"4000000", "8", statusInterval, false},
		{"180000000", "7", statusInterval, true},
		{"1", "", time.Millisecond, true},
		{"9223372036854775807", "", statusInterval, true},
	} {
		if got, watched := watchdog(c.usec, c.pid, 7); got != c.want || watched != c.watched {
			t.Errorf("WATCHDOG_USEC=%s WATCHDOG_PID=%s: %v, %t", c.usec, c.pid, got, watched)
		}
	}
}

// TestReportStatus: the manager gets signs of life, each status once, and no text that
// processes of the node could shape as more than that.
func TestReportStatus(t *testing.T) {
	dir := t.TempDir()
	socket := filepath.Join(dir, "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	t.Setenv("NOTIFY_SOCKET", socket)
	t.Setenv("WATCHDOG_USEC", "2000") // a look each millisecond
	t.Setenv("WATCHDOG_PID", "")
	if err := os.MkdirAll(nodeDir(dir), 0o700); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		reportStatus(Config{RunDir: dir, Log: slog.New(slog.DiscardHandler)}, stop)
	}()
	// next returns the next message with a status, and how many came without one before.
	next := func() (string, int) {
		t.Helper()
		buf := make([]byte, 4096)
		for alive := 0; ; alive++ {
			n, err := l.Read(buf)
			if err != nil {
				t.Fatal(err)
			}
			if text := string(buf[:n]); text != "WATCHDOG=1" {
				return text, alive
			}
		}
	}
	note := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(nodeDir(dir), name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want := func(text string) {
		t.Helper()
		if got, _ := next(); got != "WATCHDOG=1\nSTATUS="+text {
			t.Errorf("got %q, want the status %q", got, text)
		}
	}
	want("starting")
	note(fileReady, "")
	want("serving")
	buf := make([]byte, 100)
	for range 3 {
		if n, err := l.Read(buf); err != nil || string(buf[:n]) != "WATCHDOG=1" {
			t.Errorf("got %q, %v, want a sign of life", buf[:n], err)
		}
	}
	// A rename, since a look in the middle of a write would be another status.
	note("new", "bad key\nMAINPID=1\x1b[2J"+strings.Repeat("x", 1000))
	if err := os.Rename(filepath.Join(nodeDir(dir), "new"), filepath.Join(nodeDir(dir), fileDegraded)); err != nil {
		t.Fatal(err)
	}
	got, _ := next()
	if !strings.HasPrefix(got, "WATCHDOG=1\nSTATUS=serving, not with the configuration on disk: bad key MAINPID=1 [2Jxxx") ||
		strings.Count(got, "\n") != 1 || len(got) > 300 {
		t.Errorf("got %q", got)
	}
	close(stop)
	<-done
}

// TestForeignNotes: what a process of the node puts in the place of a note neither holds up
// the process that the service manager watches, nor shows it a file of the host.
func TestForeignNotes(t *testing.T) {
	dir := t.TempDir()
	secret := filepath.Join(dir, "secret")
	if err := errors.Join(os.MkdirAll(nodeDir(dir), 0o700), os.WriteFile(secret, []byte("secret"), 0o600),
		os.WriteFile(filepath.Join(nodeDir(dir), fileReady), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	for name, put := range map[string]func(path string) error{
		"link": func(path string) error { return os.Symlink(secret, path) },
		"FIFO": func(path string) error { return unix.Mkfifo(path, 0o600) },
	} {
		path := filepath.Join(nodeDir(dir), fileFailure)
		if err := put(path); err != nil {
			t.Fatal(err)
		}
		if got := statusText(dir); got != "serving" {
			t.Errorf("%s: the status is %q", name, got)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

// TestStatusAfterFailure: a server that could not start with the configuration on disk is
// past once another one serves, with the one before; why it failed stays noted.
func TestStatusAfterFailure(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(nodeDir(dir), 0o700); err != nil {
		t.Fatal(err)
	}
	at := time.Now()
	for _, c := range []struct{ note, text, want string }{
		{fileReady, "", "serving"},
		{fileFailure, "the port is taken", "containers run, but the server does not start: the port is taken"},
		{fileDegraded, "the one before serves", "containers run, but the server does not start: the port is taken"},
		{fileReady, "", "serving, not with the configuration on disk: the one before serves"},
		{fileFailure, "no memory", "containers run, but the server does not start: no memory"},
	} {
		path := filepath.Join(nodeDir(dir), c.note)
		at = at.Add(time.Second)
		if err := errors.Join(os.WriteFile(path, []byte(c.text), 0o600), os.Chtimes(path, at, at)); err != nil {
			t.Fatal(err)
		}
		if got := statusText(dir); got != c.want {
			t.Errorf("after %s: the status is %q, want %q", c.note, got, c.want)
		}
	}
}
