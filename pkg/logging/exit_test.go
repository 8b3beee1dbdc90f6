package logging_test

import (
	"errors"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/subpod/subpod/pkg/logging"
)

// TestMain is the process of the tests of Exit, too.
func TestMain(m *testing.M) {
	if os.Getenv("SUBPOD_TEST_EXIT") == "" {
		os.Exit(m.Run())
	}
	log := logging.New(os.Stderr, logging.Options{Level: slog.LevelError})
	for range 1000 { // more than a pipe holds
		log.Error(strings.Repeat("x", 200))
	}
	log.Error("the end")
	_, _ = os.Stdout.WriteString("ends\n")
	logging.Exit(3, "last words\n")
}

// ending is a process that has logged more than was read, and ends.
type ending struct {
	cmd *exec.Cmd
	log *os.File
}

func newEnding(t *testing.T) ending {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	defer w.Close()
	cmd := exec.Command(os.Args[0])
	cmd.Env, cmd.Stderr = append(os.Environ(), "SUBPOD_TEST_EXIT=1"), w
	said, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_, _ = said.Read(make([]byte, 10))
	return ending{cmd, r}
}

// wait returns once the process has ended with its exit code.
func (e ending) wait(t *testing.T) {
	t.Helper()
	var exit *exec.ExitError
	if err := e.cmd.Wait(); !errors.As(err, &exit) || exit.ExitCode() != 3 {
		t.Errorf("the process ended with %v", err)
	}
}

// TestExitUnread: a reader that has stopped does not keep a process that ends.
func TestExitUnread(t *testing.T) {
	e := newEnding(t)
	patience := time.AfterFunc(time.Minute, func() { _ = e.cmd.Process.Kill() })
	defer patience.Stop()
	e.wait(t)
}

// TestExitRead: what was logged before the end of a process comes to a reader that is late.
func TestExitRead(t *testing.T) {
	for read := 0; read < 5; {
		begin := time.Now()
		e := newEnding(t)
		text, _ := io.ReadAll(e.log)
		took := time.Since(begin)
		e.wait(t)
		if n := strings.Count(string(text), "\n"); n == 1002 && strings.HasSuffix(string(text), "msg=\"the end\"\nlast words\n") {
			read++
		} else if took < time.Second { // else the machine may have stood still for as long as the process waits
			t.Fatalf("%d lines, the last: %.200q", n, text[max(0, len(text)-200):])
		}
	}
}
