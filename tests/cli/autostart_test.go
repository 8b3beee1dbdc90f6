package cli

import (
	"bytes"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/tests/node"
)

// TestStopWithinStart: a daemon that is stopped ends, however far its start has come.
func TestStopWithinStart(t *testing.T) {
	n := node.Prepare(t, node.Options{Config: bridge})
	for delay := time.Duration(0); delay < 400*time.Millisecond; delay += 40 * time.Millisecond {
		var out bytes.Buffer
		cmd := n.Command(t.Context(), node.Path(t, node.Subpod), "daemon")
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		time.Sleep(delay)
		_ = cmd.Process.Signal(unix.SIGTERM)
		select {
		case <-ended:
		case <-time.After(20 * time.Second):
			_ = cmd.Process.Kill()
			t.Fatalf("a daemon that was stopped after %v goes on:\n%s", delay, out.String())
		}
	}
}
