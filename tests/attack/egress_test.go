package attack

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/tests/node"
)

var switchedEgress = map[string]string{"subpod.io/egress": "switched"}

// TestSwitchedEgress: a pod whose connections are made in the host's network gets the outside by it, and
// nothing else.
func TestSwitchedEgress(t *testing.T) {
	c := newCage(t)
	outside, _ := serveClients(t, node.HostIPv4(t)+":0")
	loopback, reached := serveClients(t, "127.0.0.1:0")
	id := c.run(inmate{pid: ownPID, annotations: switchedEgress,
		command: []string{"sh", "-c", "/attack escape-egress-dial " + outside + " >/tmp/own; until [ -e /tmp/go ]; do sleep 0.1; done; /attack escape-egress-many " + outside + " 3s; sleep 1000"}})
	t.Run("the outside", func(t *testing.T) {
		c := c.in(t)
		for i, out := range []string{c.exec(id, "/attack", "escape-egress-dial", outside), c.exec(id, "sh", "-c", "until grep TRIED /tmp/own >/dev/null; do sleep 0.1; done; cat /tmp/own")} {
			if !strings.HasPrefix(out, node.HostIPv4(t)+":") {
				t.Errorf("connection %d: %q, want the host's address", i, out)
			}
		}
		plain := c.run(inmate{pid: ownPID})
		if out := c.exec(plain, "/attack", "escape-egress-dial", outside); strings.HasPrefix(out, node.HostIPv4(t)+":") {
			t.Errorf("a pod that has not asked: %q", out)
		}
	})
	t.Run("other pods", func(t *testing.T) {
		c := c.in(t)
		other := c.run(inmate{pid: ownPID, command: []string{"nc", "-l", "-p", "80", "-e", "cat"}})
		address := strings.Fields(c.exec(other, "sh", "-c", "until netstat -ltn | grep -q ':80 '; do sleep 0.1; done; ip -4 -o addr show eth0 | sed 's/.*inet \\([0-9.]*\\).*/\\1/'"))[0]
		if out := c.exec(id, "/attack", "escape-egress-dial", address+":80"); !strings.HasPrefix(out, "10.88.") {
			t.Errorf("%q, want the pod's own address", out)
		}
	})
	t.Run("the host's loopback", func(t *testing.T) { c.in(t).escape(id, "reach", c.port) })
	t.Run("a second thread", func(t *testing.T) {
		c := c.in(t)
		for _, attack := range []string{"egress-rewrite", "egress-swap"} {
			c.escape(id, attack, outside, loopback, "700ms")
		}
	})
	t.Run("hostUsers false", func(t *testing.T) {
		c := c.in(t)
		id := c.run(inmate{pid: ownPID, users: ownUsers(), annotations: switchedEgress})
		if out := c.exec(id, "/attack", "escape-egress-dial", outside); !strings.HasPrefix(out, node.HostIPv4(t)+":") {
			t.Errorf("%q, want the host's address", out)
		}
		c.escape(id, "egress-swap", outside, loopback, "300ms")
	})
	t.Run("privileged", func(t *testing.T) {
		c := c.in(t)
		id := c.run(inmate{pid: ownPID, privileged: true, annotations: switchedEgress})
		c.escape(id, "egress-swap", outside, loopback, "300ms")
		c.escape(id, "reach", c.port)
	})
	t.Run("refused", func(t *testing.T) { refuseEgress(c.in(t)) })
	if n := reached(); n != 0 {
		t.Errorf("%d connections to the host's loopback", n)
	}
	t.Run("the server is killed", func(t *testing.T) {
		c := c.in(t)
		c.exec(id, "touch", "/tmp/go")
		for range 3 {
			time.Sleep(500 * time.Millisecond) // while connections are made
			c.n.KillServer()
		}
		var out string
		node.Eventually(t, "the end of the connections", func() error {
			resp, err := c.cri.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"cat", "/tmp/many"}, Timeout: 20})
			if err == nil {
				out = string(resp.Stdout)
			}
			if err == nil && !strings.Contains(out, tried) {
				err = errors.New(out)
			}
			return err
		})
		if !strings.HasPrefix(out, "0 failed") {
			t.Errorf("connections while servers were killed: %s", out)
		}
		if out := c.exec(id, "/attack", "escape-egress-dial", outside); !strings.HasPrefix(out, node.HostIPv4(t)+":") {
			t.Errorf("by the next server: %q, want the host's address", out)
		}
	})
}

// refuseEgress asks for what cannot be had.
func refuseEgress(c *cage) {
	profile := filepath.Join(c.n.Dir, "notify.json")
	text, err := json.Marshal(map[string]any{"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/run/l.sock",
		"syscalls": []any{map[string]any{"names": []string{"mkdir"}, "action": "SCMP_ACT_NOTIFY"}}})
	if err == nil {
		err = os.WriteFile(profile, text, 0o644)
	}
	if err != nil {
		c.Fatal(err)
	}
	for want, i := range map[string]inmate{
		"network of its own": {pid: ownPID, net: onNode, annotations: switchedEgress},
		"is limited":         {pid: ownPID, annotations: map[string]string{"subpod.io/egress": "switched", "kubernetes.io/egress-bandwidth": "1M"}},
		"neither":            {pid: ownPID, annotations: map[string]string{"subpod.io/egress": "fast"}},
		"has a listener":     {pid: ownPID, annotations: switchedEgress, seccomp: &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: profile}},
	} {
		if _, err := c.try(i); err == nil || !strings.Contains(err.Error(), want) {
			c.Errorf("%v, want an error with %q", err, want)
		}
	}
}

// serveClients accepts clients on the host and counts them.
func serveClients(t *testing.T, address string) (at string, clients func() int64) {
	t.Helper()
	l, err := net.Listen("tcp4", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	var n atomic.Int64
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			n.Add(1)
			go func() {
				defer conn.Close()
				fmt.Fprintln(conn, "hello")
				_, _ = io.Copy(io.Discard, conn)
			}()
		}
	}()
	return l.Addr().String(), n.Load
}

// egressDial prints the own address of a connection.
func egressDial(args []string) error {
	conn, err := net.DialTimeout("tcp", args[0], 20*time.Second)
	if err != nil {
		return err
	}
	fmt.Println(conn.LocalAddr())
	return nil
}

func rawAddress(text string) *unix.RawSockaddrInet4 {
	a := netip.MustParseAddrPort(text)
	raw := &unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: a.Addr().As4()}
	*(*[2]byte)(unsafe.Pointer(&raw.Port)) = [2]byte{byte(a.Port() >> 8), byte(a.Port())}
	return raw
}

func connectRaw(fd int, address unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(address), unix.SizeofSockaddrInet4); errno != 0 {
		return errno
	}
	return nil
}

// egressRewrite has a second thread change the address of a connect(2) between one outside and one of the
// host's loopback: args are both, and for how long.
func egressRewrite(args []string) error {
	good, bad := rawAddress(args[0]), rawAddress(args[1])
	address := *good
	length, err := time.ParseDuration(args[2])
	if err != nil {
		return err
	}
	end := time.Now().Add(length)
	go func() {
		runtime.LockOSThread()
		for time.Now().Before(end) {
			address = *bad
			address = *good
		}
	}()
	for time.Now().Before(end) {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return err
		}
		_ = connectRaw(fd, unsafe.Pointer(&address))
		if peer, err := unix.Getpeername(fd); err == nil && peer.(*unix.SockaddrInet4).Addr == bad.Addr {
			got("a connection to the loopback")
		}
		unix.Close(fd)
	}
	return nil
}

// egressSwap has a second thread put a socket of the host's, which is not connected, under the descriptor of
// one that the server leaves to the kernel.
func egressSwap(args []string) error {
	runtime.LockOSThread()
	good, bad := rawAddress(args[0]), rawAddress(args[1])
	length, err := time.ParseDuration(args[2])
	if err != nil {
		return err
	}
	host, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return err
	}
	if err := connectRaw(host, unsafe.Pointer(good)); err != nil && !errors.Is(err, unix.EINPROGRESS) {
		return err
	}
	var unspec unix.RawSockaddrInet4
	if err := connectRaw(host, unsafe.Pointer(&unspec)); err != nil {
		return err
	}
	mine, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	const target = 100
	var done atomic.Bool
	defer done.Store(true)
	go func() {
		runtime.LockOSThread()
		for !done.Load() {
			_ = unix.Dup2(mine, target)
			_ = unix.Dup2(host, target)
		}
	}()
	met := 0
	for begun := time.Now(); time.Since(begun) < length || met == 0 && time.Since(begun) < 30*time.Second; {
		err := connectRaw(target, unsafe.Pointer(bad))
		if errors.Is(err, unix.EINPROGRESS) || errors.Is(err, unix.EALREADY) {
			met++
			_ = connectRaw(host, unsafe.Pointer(&unspec))
		}
		if peer, err := unix.Getpeername(host); err == nil {
			got("a connection to %v", peer)
			break
		}
	}
	if met == 0 {
		return errors.New("the threads never met")
	}
	return nil
}

// egressMany connects for a time and writes to /tmp/many how often that has failed.
func egressMany(args []string) error {
	length, err := time.ParseDuration(args[1])
	if err != nil {
		return err
	}
	failed, first, n := 0, "", 0
	for end := time.Now().Add(length); time.Now().Before(end); n++ {
		conn, err := net.DialTimeout("tcp", args[0], 10*time.Second)
		if err != nil {
			failed, first = failed+1, err.Error()
			continue
		}
		conn.Close()
	}
	return os.WriteFile("/tmp/many", []byte(strconv.Itoa(failed)+" failed of "+strconv.Itoa(n)+" "+first+"\n"+tried+"\n"), 0o644)
}
