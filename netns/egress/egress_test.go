package egress

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/pkg/seccompnotify"
)

const (
	peer  = outside + ":" + greetPort
	third = outside + ":" + otherPort
)

// TestSwitched: programs in the pod, whose network leads nowhere, have connections of the host.
func TestSwitched(t *testing.T) {
	w := newWorld(t)
	for _, role := range []string{"blocking", "nonblocking", "go", "options"} {
		out := w.run(role, peer)
		own, rest, _ := strings.Cut(out, " ")
		if want := fmt.Sprintf("%s \"hello %s\\n\" <nil>", peer, own); rest != want || !strings.HasPrefix(own, hostAddress+":") {
			t.Errorf("%s: %q, want the host's address and %s", role, out, want)
		}
	}
	for _, role := range []string{"blocking", "nonblocking", "go"} {
		if out := w.run(role, outside+":"+closedPort); !strings.Contains(out, "connection refused") {
			t.Errorf("%s to a closed port: %q", role, out)
		}
	}
	await(t, "all to be counted", func() bool { return w.m.Counts()["switched"] >= 7 }) // which the programs need not wait for
	if got := w.m.Counts(); got["switched"] != 7 {
		t.Errorf("counted %v", got)
	}
}

// TestKept: what is used elsewhere as well goes on there, and so does what leads to the host itself.
func TestKept(t *testing.T) {
	w := newWorld(t)
	before := greeted(t)
	out := w.run("kept", peer)
	for _, name := range []string{"dup", "epoll", "bind"} {
		if !strings.Contains(out, name+" network is unreachable") {
			t.Errorf("%s\nwant %s on the pod's network, which leads nowhere", out, name)
		}
	}
	if out := w.run("blocking", onLo+":"+closedPort); out != "network is unreachable" { // on lo
		t.Errorf("to the host's loopback interface: %s", out)
	}
	await(t, "all to be counted", func() bool {
		c := w.m.Counts()
		return c["shared"]+c["epoll"]+c["bound"]+c["host"] >= 4
	})
	counts := w.m.Counts()
	if counts["shared"] != 1 || counts["epoll"] != 1 || counts["bound"] != 1 || counts["host"] != 1 || greeted(t) != before {
		t.Errorf("counted %v and %d connections", counts, greeted(t)-before)
	}
}

// TestAgain: one socket, several connections.
func TestAgain(t *testing.T) {
	w := newWorld(t)
	loopback, clients := onLoopback(t)
	_, port, _ := net.SplitHostPort(loopback)
	lines := strings.Split(w.run("again", outside+":"+closedPort, peer, third, port), "\n")
	want := []string{"connection refused", "<nil>", "transport endpoint is already connected", "<nil>", "<nil>"}
	if len(lines) != 8 || !equal(lines[:5], want) || !strings.Contains(lines[5], third+` "hello`) || lines[6] != "<nil>" || lines[7] != "connection refused" || clients() != 0 {
		t.Errorf("%q, want %q, the second's greeting, and a refusal by the pod's own loopback: %v", lines, want, w.m.Counts())
	}
}

func equal(a, b []string) bool { return strings.Join(a, "\n") == strings.Join(b, "\n") }

// TestInterrupted: a call that blocks is ended by a signal, and by SO_SNDTIMEO, as any other; its connection is made.
func TestInterrupted(t *testing.T) {
	w := newWorld(t)
	lines := strings.Split(w.run("interrupted", outside+":"+slowPort), "\n")
	if len(lines) != 4 || lines[0] != "interrupted system call" || lines[1] != "operation now in progress" {
		t.Fatalf("%q", lines)
	}
	for _, line := range lines[2:] {
		own, _, _ := strings.Cut(line, " ")
		if !strings.HasPrefix(own, hostAddress+":") || !strings.HasSuffix(line, fmt.Sprintf(" \"hello %s\\n\" <nil>", own)) {
			t.Errorf("%q, want the host's address and a greeting", line)
		}
	}
}

// TestRefusedCalls: what sends data ahead of a connection, and what connects without being asked; and
// the host's sockets do not listen.
func TestRefusedCalls(t *testing.T) {
	w := newWorld(t)
	out := w.run("refused", peer)
	if n := strings.Count(out, "operation not supported"); n != 6 || !strings.Contains(out, "io_uring function not implemented") || !strings.Contains(out, "own listen <nil>") {
		t.Errorf("%s", out)
	}
}

// TestNetworkOfItsOwn: a process that has left the pod's network for one of its own has no connections
// by the host.
func TestNetworkOfItsOwn(t *testing.T) {
	w := newWorld(t)
	if out := w.run("sandbox", peer); out != "network is unreachable" {
		t.Errorf("%q", out)
	}
}

// TestRewrittenAddress: a second thread that changes the address in between does not get to the
// host's loopback.
func TestRewrittenAddress(t *testing.T) {
	w := newWorld(t)
	before := greeted(t)
	loopback, bad := onLoopback(t)
	await(t, "a connection to the address that is allowed", func() bool {
		t.Logf("%s tries", w.run("rewrite", peer, loopback, "500ms"))
		return greeted(t) > before || bad() != 0
	})
	if bad() != 0 {
		t.Errorf("%d connections to the loopback", bad())
	}
}

// TestSwappedDescriptor: nor does one that changes what socket a descriptor stands for.
func TestSwappedDescriptor(t *testing.T) {
	w := newWorld(t)
	loopback, bad := onLoopback(t)
	out := w.run("swap", peer, loopback, "500ms")
	if out == "0" {
		t.Error("the threads never met: nothing was tried")
	}
	if bad() != 0 {
		t.Errorf("%d connections to the host's loopback", bad())
	}
}

// TestWeld: a socket that is welded to an interface reaches nothing but by that, whatever is done to it,
// and has its port for ever.
func TestWeld(t *testing.T) {
	loopback, clients := onLoopback(t)
	lo6, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		t.Fatal(err)
	}
	defer lo6.Close()
	all, _, err := greet(":0") // on the host's own addresses as well
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(all)
	index, err := (&ways{}).to(netip.MustParseAddr(outside))
	if err != nil {
		t.Fatal(err)
	}
	weldNew := func(domain int) int {
		fd, err := unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		if err := weld(fd, domain, index); err != nil {
			t.Fatal(err)
		}
		tv := unix.Timeval{Usec: 50000}
		_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &tv)
		return fd
	}
	disconnect := func(fd int) {
		var unspec [28]byte
		_, _, _ = unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&unspec)), 28)
	}
	fd := weldNew(unix.AF_INET)
	if err := unix.Connect(fd, sockaddr(peer)); err != nil {
		t.Errorf("its peer: %v", err)
	}
	for _, to := range []string{loopback, "127.0.0.1:" + port, "127.1.2.3:" + port, onLo + ":" + port} {
		disconnect(fd)
		if err := unix.Connect(fd, sockaddr(to)); err == nil {
			t.Errorf("connected to %s", to)
		}
	}
	six := weldNew(unix.AF_INET6)
	for _, to := range []string{lo6.Addr().String(), "[::ffff:127.0.0.1]:" + port, "[::1]:" + port} {
		disconnect(six)
		a := netip.MustParseAddrPort(to)
		if err := unix.Connect(six, &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}); err == nil {
			t.Errorf("connected to %s", to)
		}
	}
	disconnect(fd)
	if err := unix.Bind(fd, &unix.SockaddrInet4{Port: 1234}); !errors.Is(err, unix.EINVAL) {
		t.Errorf("bound to a port of its choice: %v", err)
	}
	for what, err := range map[string]error{
		"unbound": unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX, 0),
		"rebound": unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX, 1),
		"renamed": unix.SetsockoptString(fd, unix.SOL_SOCKET, unix.SO_BINDTODEVICE, "lo"),
		"emptied": unix.SetsockoptString(fd, unix.SOL_SOCKET, unix.SO_BINDTODEVICE, ""),
	} {
		if !errors.Is(err, unix.EPERM) {
			t.Errorf("it can be %s: %v", what, err)
		}
	}
	if clients() != 0 {
		t.Errorf("%d connections to the loopback", clients())
	}
}

// TestReserved: ports that the host's administrator has reserved are not taken.
func TestReserved(t *testing.T) {
	const ports = "8080,40000-40009,50000\n"
	for port, want := range map[int]bool{8080: true, 8081: false, 39999: false, 40000: true, 40009: true, 40010: false, 50000: true} {
		if got := reserved(ports, port); got != want || reserved("\n", port) {
			t.Errorf("port %d: %v, want %v", port, got, want)
		}
	}
}

// TestPlaces: which addresses the pod's network has.
func TestPlaces(t *testing.T) {
	p := places{more: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/12")}}
	for text, want := range map[string]bool{
		"127.0.0.1": true, "127.8.9.1": true, "0.0.0.0": true, "0.1.2.3": true, "::1": true, "::": true, "::ffff:127.0.0.1": true, "::127.0.0.1": true,
		"::ffff:0.0.0.0": true, "169.254.169.254": true, "fe80::1": true, "224.0.0.1": true, "ff02::1": true, "255.255.255.255": true,
		"10.0.2.2": true, "10.96.0.1": true, "::ffff:10.111.1.1": true, "fd5e:1271:ce00::1": true, "240.0.0.1": true,
		"192.0.2.1": false, "10.1.2.3": false, "2001:db8::1": false, "::ffff:192.0.2.1": false, "10.112.0.1": false,
	} {
		if got := p.local(netip.MustParseAddr(text)); got != want {
			t.Errorf("%s: %v, want %v", text, got, want)
		}
	}
}

// TestMany: connections one after the other, more than a few of whose ports are still taken by those before.
func TestMany(t *testing.T) {
	w := newWorld(t)
	const n = 3000
	before := greeted(t)
	if out := w.run("many", peer, strconv.Itoa(n)); out != "0 map[]" {
		t.Error(out)
	}
	await(t, "the connections to be accepted", func() bool { return greeted(t) >= before+n })
}

func await(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("still waiting for %s", what)
		}
	}
}

// TestLedgerFull: when there are as many listeners as there may be, programs run, on the pod's network.
func TestLedgerFull(t *testing.T) {
	w := newWorld(t)
	for {
		if _, err := w.m.ledger.Take(); err != nil {
			break
		}
	}
	if out := w.run("blocking", peer); out != "network is unreachable" {
		t.Errorf("%q", out)
	}
}

// TestReadAddress: the length of an address is what the kernel takes it for.
func TestReadAddress(t *testing.T) {
	var b [128]byte
	binary.NativeEndian.PutUint16(b[:], unix.AF_INET)
	copy(b[2:], []byte{0, 80, 192, 0, 2, 9})
	for length, want := range map[uint64]bool{16: true, 128: true, 1<<32 | 16: true, 15: false, 129: false, 1 << 31: false, 1<<64 - 1: false, 0: false} {
		got, err := readAddress(os.Getpid(), uint64(uintptr(unsafe.Pointer(&b))), length)
		if (err == nil) != want || want && got.String() != "192.0.2.9:80" {
			t.Errorf("length %#x: %v %v", length, got, err)
		}
	}
}

// TestSets: not more than so much is read of all epoll sets of a process together.
func TestSets(t *testing.T) {
	w, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(w)
	c, left := caller{tid: os.Getpid(), fd: 0}, int64(maxSets)
	if used, err := c.inSet(strconv.Itoa(w), &left); used != usedOnce || err != nil || left == maxSets {
		t.Errorf("%q %v, %d bytes left", used, err, left)
	}
	left = 10
	if used, err := c.inSet(strconv.Itoa(w), &left); used != usedUnknown || err != nil {
		t.Errorf("a set beyond what is read: %q %v", used, err)
	}
}

// TestFlood: while one pod floods its listener, all connections of another are switched.
func TestFlood(t *testing.T) {
	w := newWorld(t)
	cmd, lines := w.begin("flood", third)
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	lines.Scan()
	const n = 100
	before := greeted(t)
	if out := w.run("many", peer, strconv.Itoa(n)); out != "0 map[]" {
		t.Errorf("beside a flood: %s", out)
	}
	await(t, "the connections to be accepted", func() bool { return greeted(t) >= before+n })
}

// TestNextServer: a pod's connections are switched by the next server as well, and its listener goes with
// its last process.
func TestNextServer(t *testing.T) {
	w := newWorld(t)
	cmd, lines := w.begin("ask", peer)
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	for range 3 {
		lines.Scan()
		if lines.Text() != "<nil>" {
			t.Fatalf("%q", lines.Text())
		}
		w.m.Close()
		w.start()
	}
	_ = cmd.Process.Kill()
	await(t, "the listener to be dropped", func() bool { return len(w.shelf.Names(seccompnotify.HeldListener)) == 0 })
}
