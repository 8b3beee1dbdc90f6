package oci

import (
	"bufio"
	"context"
	"errors"
	"io"
	"os/exec"
	"testing"

	"github.com/subpod/subpod/pkg/proc"
)

// TestAwaitExec: an init without a stack is one that executes its command just then, or one
// that ends: neither is known before it has.
func TestAwaitExec(t *testing.T) {
	for name, c := range map[string]struct {
		moments []moment
		seen    bool
	}{
		"at once":         {[]moment{executes}, true},
		"after a while":   {[]moment{waits, waits, executes}, true},
		"within execve":   {[]moment{waits, between, between, executes}, true},
		"ends":            {[]moment{waits, over}, false},
		"is about to end": {[]moment{waits, between, over}, false},
	} {
		seen, err := awaitExec(t.Context(), func() moment {
			next := c.moments[0]
			c.moments = c.moments[1:]
			return next
		})
		if seen != c.seen || err != nil || len(c.moments) > 0 {
			t.Errorf("%s: seen %v, %v, not looked at: %v", name, seen, err, c.moments)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := awaitExec(ctx, func() moment { return between }); !errors.Is(err, context.Canceled) {
		t.Errorf("no end: %v", err)
	}
}

// TestAwaitExecOfProcesses: processes that execute a command are all seen to do so. One in
// fifty was met within execve(2), and taken for one that ends.
func TestAwaitExecOfProcesses(t *testing.T) {
	for range 300 {
		cmd := exec.Command("sh", "-c", "echo ready; read go; exec sleep 1000")
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		seen, err := awaitSleep(t.Context(), cmd.Process.Pid, in, out)
		if err != nil || !seen {
			t.Errorf("seen %v, %v", seen, err)
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
}

func awaitSleep(ctx context.Context, pid int, in io.Writer, out io.Reader) (bool, error) {
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		return false, err
	}
	id, err := proc.Identify(pid)
	if err != nil {
		return false, err
	}
	c := Container{Init: id}
	if c.Before, err = imageOf(pid); err != nil {
		return false, err
	}
	if _, err := io.WriteString(in, "go\n"); err != nil {
		return false, err
	}
	return awaitExec(ctx, c.moment)
}
