package cli

import (
	"bytes"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/tests/node"
)

// TestSocketActivation: a daemon takes the socket on which the service manager listens,
// hands it to each of its servers, and leaves it there. Clients wait while there is no
// server, and none is refused.
func TestSocketActivation(t *testing.T) {
	for _, view := range []string{"full", "minimal"} {
		t.Run(view, func(t *testing.T) { socketActivation(t, "[node]\nview = \""+view+"\"\n"+bridge) })
	}
}

func socketActivation(t *testing.T, config string) {
	n := node.Prepare(t, node.Options{Config: config})
	if err := os.MkdirAll(filepath.Dir(n.Socket), 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: n.Socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	l.SetUnlinkOnClose(false)
	socket, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	inode := func() uint64 {
		t.Helper()
		var st unix.Stat_t
		if err := unix.Lstat(n.Socket, &st); err != nil {
			t.Fatal(err)
		}
		return st.Ino
	}
	before := inode()
	var log bytes.Buffer
	cmd := exec.Command("/bin/sh", "-c", `LISTEN_FDS=1 LISTEN_PID=$$ exec "$0" daemon`, node.Path(t, node.Subpod))
	cmd.Env, cmd.Dir = n.Environ(), n.Home
	cmd.Stdout, cmd.Stderr = &log, &log
	cmd.ExtraFiles = []*os.File{socket}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	defer func() {
		_ = cmd.Process.Signal(unix.SIGTERM)
		if err := <-ended; err != nil {
			t.Errorf("the daemon: %v\n%s", err, log.String())
		}
		if after := inode(); after != before {
			t.Errorf("after the daemon's end the socket is another one: %d, was %d", after, before)
		}
	}()
	// There is no server yet.
	if out, err := n.Subpod("ps"); err != nil {
		t.Fatalf("the first client: %v: %s", err, out)
	}
	for range 3 {
		reloaded := make(chan error, 1)
		go func() {
			_, err := n.Subpod("reload")
			reloaded <- err
		}()
		for done := false; !done; {
			select {
			case err := <-reloaded:
				if err != nil {
					t.Fatal(err)
				}
				done = true
			default:
			}
			if c, err := net.Dial("unix", n.Socket); err != nil {
				t.Fatalf("a client during a reload: %v", err)
			} else {
				c.Close()
			}
			if out, err := n.Subpod("ps"); done && err != nil {
				t.Fatalf("a client after a reload: %v: %s", err, out)
			}
		}
	}
	if after := inode(); after != before {
		t.Errorf("after reloads the socket is another one: %d, was %d", after, before)
	}
}
