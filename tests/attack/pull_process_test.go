package attack

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/subpod/subpod/tests/node"
)

// slowPull begins a pull that does not end by itself, and returns the PID of its process
// and where its error comes.
func (n *contentNode) slowPull(t *testing.T, ctx context.Context) (pid int, done <-chan error) {
	t.Helper()
	img := newImage(plainLayer(append(header("x", '0', 0), make([]byte, 1<<20)...)))
	n.registry.put("img", img.finish(t), img.blobs)
	ended := make(chan error, 1)
	go func() {
		_, err := n.pull(ctx, n.registry.host+"/slow/img:1")
		ended <- err
	}()
	node.Eventually(t, "the slow pull has begun", func() error {
		if pid = n.Child("subpod-content"); pid == 0 || n.registry.slowAnswers() == 0 {
			return errors.New("no blob was asked for")
		}
		return nil
	})
	return pid, ended
}

// TestPullConnections: the process of a pull, which an image may take over, has no
// connection but to its proxy: the registry, and the user's other services, see the server.
func TestPullConnections(t *testing.T) {
	n := startContentNode(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	pid, done := n.slowPull(t, ctx)
	peers := connections(t, pid)
	if len(peers) != 1 || strings.HasSuffix(n.registry.host, fmt.Sprint(":", peers[0])) {
		t.Errorf("it is connected with the ports %v, want one, of its proxy (the registry is %s)", peers, n.registry.host)
	}
	server := connections(t, n.Server())
	var registry uint16
	fmt.Sscan(n.registry.host[strings.LastIndex(n.registry.host, ":")+1:], &registry)
	if !slices.Contains(server, registry) {
		t.Errorf("the server is connected with the ports %v, not with the registry's %d: this test sees nothing", server, registry)
	}
	cancel()
	<-done
}

// connections returns the remote ports of a process's TCP connections.
func connections(t *testing.T, pid int) (ports []uint16) {
	t.Helper()
	own := map[string]bool{}
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil || len(fds) == 0 {
		t.Fatalf("no descriptors of process %d: %v", pid, err)
	}
	for _, fd := range fds {
		target, _ := os.Readlink(fd)
		if inode, ok := strings.CutPrefix(target, "socket:["); ok {
			own[strings.TrimSuffix(inode, "]")] = true
		}
	}
	for _, file := range []string{"tcp", "tcp6"} {
		table, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", pid, file))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(table)) {
			f := strings.Fields(line)
			if len(f) < 10 || !own[f[9]] || f[3] != "01" { // established
				continue
			}
			var port uint16
			fmt.Sscanf(f[2][strings.LastIndex(f[2], ":")+1:], "%X", &port)
			if !slices.Contains(ports, port) {
				ports = append(ports, port)
			}
		}
	}
	return ports
}

// TestPullStopped: a process of a pull that is stopped, as one that was taken over may
// stop itself, is killed when it has said nothing for the pull's time limit; other pulls
// go on meanwhile.
func TestPullStopped(t *testing.T) {
	n := startContentNode(t)
	pid, done := n.slowPull(t, t.Context())
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	n.others(t)
	if err := <-done; err == nil || !strings.Contains(err.Error(), "has said nothing for") {
		t.Errorf("%v, want that the process has said nothing", err)
	}
	n.nothingLeft(t)
}
