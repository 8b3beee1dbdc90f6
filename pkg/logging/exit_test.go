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

// TestMain is the process of TestExit, too.
func TestMain(m *testing.M) {
	if os.Getenv("SUBPOD_TEST_EXIT") == "" {
		os.Exit(m.Run())
	}
	log := logging.New(os.Stderr, logging.Options{Level: slog.LevelError})
	for range 1000 { // more than a pipe holds
		log.Error(strings.Repeat("x", 200))
	}
	log.Error("the end")
	logging.Exit(3, "last words\n")
}

// TestExit: what was logged before the end of a process comes to a reader that is late, and
// one that has stopped does not keep the process.
func TestExit(t *testing.T) {
	for _, name := range []string{"late", "stopped"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			cmd := exec.Command(os.Args[0])
			cmd.Env, cmd.Stderr = append(os.Environ(), "SUBPOD_TEST_EXIT=1"), w
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			w.Close()
			ended := make(chan error, 1)
			go func() { ended <- cmd.Wait() }()
			if name == "stopped" {
				select {
				case err = <-ended:
				case <-time.After(time.Minute):
					_ = cmd.Process.Kill()
					t.Fatal("the process waits for the log's reader")
				}
			} else {
				time.Sleep(300 * time.Millisecond)
				text, _ := io.ReadAll(r)
				if n := strings.Count(string(text), "\n"); n != 1002 || !strings.HasSuffix(string(text), "msg=\"the end\"\nlast words\n") {
					t.Errorf("%d lines, the last: %.200q", n, text[max(0, len(text)-200):])
				}
				err = <-ended
			}
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.ExitCode() != 3 {
				t.Errorf("the process ended with %v", err)
			}
		})
	}
}
