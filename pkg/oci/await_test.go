package oci

import (
	"bufio"
	"context"
	"errors"
	"io"
	"io/fs"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"

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

// TestMoment: a program that nobody may read, as one of the host's of mode 0711, is known by
// that; its container took six seconds to start.
func TestMoment(t *testing.T) {
	before, now, within := image{1, 2, 3}, image{1, 4, 5}, image{1, 2, 0}
	none := &fs.PathError{Op: "stat", Err: unix.ENOENT} // without memory, a process has no program
	for name, c := range map[string]struct {
		now   image
		err   error
		alive bool
		ends  bool
		want  moment
	}{
		"before":               {before, nil, true, false, waits},
		"within execve":        {within, nil, true, false, between},
		"after it":             {now, nil, true, false, executes},
		"unreadable":           {image{}, &fs.PathError{Op: "stat", Err: unix.EACCES}, true, false, executes},
		"unreadable, and ends": {image{}, &fs.PathError{Op: "stat", Err: unix.EACCES}, true, true, between},
		"ends":                 {image{}, none, true, true, between},
		"without memory":       {image{}, none, true, false, over},
		"a zombie":             {within, nil, false, true, over},
		"an unreadable zombie": {image{}, &fs.PathError{Op: "stat", Err: unix.EACCES}, false, true, over},
	} {
		if got := momentOf(before, c.now, c.err, c.alive, c.ends); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
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
