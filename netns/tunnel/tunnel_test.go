package tunnel

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/netns/bridge"
	"github.com/subpod/subpod/tests/nstest"
)

func TestMain(m *testing.M) {
	os.Exit(nstest.Main(m, nstest.Options{Net: true, PID: true, IPC: true, UTS: true, IDs: 65536}))
}

// answerTimeout only ends a test that would wait forever: on a busy machine WireGuard begins
// some handshakes again, each time after five seconds. lost is how long a packet that
// must not arrive is waited for.
const (
	answerTimeout = time.Minute
	lost          = 300 * time.Millisecond
)

// site is a node's network namespace, with a thread in it, and its tunnel. The sockets of
// all tunnels are in the test's own namespace: its loopback is the network between hosts.
type site struct {
	t      testing.TB
	calls  chan func()
	key    PrivateKey
	socket *net.UDPConn
	tunnel *Tunnel
	own    []netip.Prefix
}

// newSite makes one. addresses are those of its loopback: pods, and the node's own.
func newSite(t testing.TB, addresses ...string) *site {
	t.Helper()
	must(t, exec.Command("ip", "link", "set", "lo", "up").Run())
	key, err := NewPrivateKey()
	must(t, err)
	socket, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	must(t, err)
	s := &site{t: t, calls: make(chan func()), key: key, socket: socket}
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		for f := range s.calls {
			f()
		}
	}()
	t.Cleanup(func() { close(s.calls) })
	s.do(func() error { return unix.Unshare(unix.CLONE_NEWNET) })
	s.ip("link", "set", "lo", "up")
	for _, a := range addresses {
		s.ip("address", "add", a, "dev", "lo")
		s.own = append(s.own, netip.MustParsePrefix(a))
	}
	return s
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// try runs f on the site's thread.
func (s *site) try(f func() error) error {
	done := make(chan error, 1)
	s.calls <- func() { done <- f() }
	return <-done
}

func (s *site) do(f func() error) {
	s.t.Helper()
	must(s.t, s.try(f))
}

func (s *site) ip(args ...string) {
	s.t.Helper()
	s.do(func() error {
		out, err := exec.Command("ip", args...).CombinedOutput()
		return errors.Join(err, failure(out, err))
	})
}

func failure(out []byte, err error) error {
	if err == nil {
		return nil
	}
	return errors.New(string(out))
}

// open opens the site's tunnel.
func (s *site) open() {
	s.t.Helper()
	s.do(func() (err error) {
		s.tunnel, err = Open(s.t.Context(), Options{Socket: s.socket, Key: s.key, Log: slog.New(slog.DiscardHandler)})
		return err
	})
	s.t.Cleanup(s.tunnel.Close)
}

// to sets what the tunnel leads to.
func (s *site) to(source string, peers ...Peer) {
	s.t.Helper()
	s.set(Config{Sources: []netip.Addr{netip.MustParseAddr(source)}, Peers: peers})
}

func (s *site) set(c Config) {
	s.t.Helper()
	c.Own = s.own
	s.do(func() error { return s.tunnel.Set(s.t.Context(), c) })
}

// peer is the site as others see it.
func (s *site) peer(pods, address string) Peer {
	local, _ := s.socket.LocalAddr().(*net.UDPAddr)
	return Peer{Name: pods, Key: s.key.Public(), Endpoint: local.AddrPort(),
		Pods: []netip.Prefix{netip.MustParsePrefix(pods)}, Addresses: []netip.Addr{netip.MustParseAddr(address)}}
}

// serve answers connections to an address with what it has seen as the client's.
func (s *site) serve(address string) {
	s.t.Helper()
	var l net.Listener
	s.do(func() (err error) {
		l, err = net.Listen("tcp", address)
		return err
	})
	s.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				host, _, _ := net.SplitHostPort(c.RemoteAddr().String())
				_, _ = io.WriteString(c, host+"\n")
				_, _ = io.Copy(c, c)
			}()
		}
	}()
}

// connect connects from an address of the site ("" = any).
func (s *site) connect(from, to string, timeout time.Duration) (c net.Conn, err error) {
	d := net.Dialer{Timeout: timeout}
	if from != "" {
		d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(from)}
	}
	err = s.try(func() (err error) { c, err = d.Dial("tcp", to); return err })
	if err != nil {
		return nil, err
	}
	return c, c.SetDeadline(time.Now().Add(answerTimeout))
}

// dial connects from an address of the site ("" = any) and returns the one that was seen.
func (s *site) dial(from, to string, timeout time.Duration, data []byte) (seen string, err error) {
	c, err := s.connect(from, to, timeout)
	if err != nil {
		return "", err
	}
	defer c.Close()
	go func() {
		_, _ = c.Write(data)
		_ = c.(*net.TCPConn).CloseWrite()
	}()
	all, err := io.ReadAll(c)
	seen, rest, _ := strings.Cut(string(all), "\n")
	if err == nil && rest != string(data) {
		err = errors.New("the data comes back changed")
	}
	return seen, err
}

// reaches asserts that to sees the client as seen.
func (s *site) reaches(from, to, seen string) {
	s.t.Helper()
	if got, err := s.dial(from, to, answerTimeout, bytes.Repeat([]byte("0123456789abcdef"), 1<<16)); err != nil || got != seen {
		s.t.Fatalf("%s → %s: seen as %q, %v; want %q", from, to, got, err, seen)
	}
}

// refused asserts that a connection fails at once, as to a host that is not there.
func (s *site) refused(to string) {
	s.t.Helper()
	if _, err := s.dial("", to, answerTimeout, nil); !errors.Is(err, unix.EHOSTUNREACH) {
		s.t.Fatalf("→ %s: %v, want %v", to, err, unix.EHOSTUNREACH)
	}
}

// lost asserts that nothing answers.
func (s *site) lost(from, to string) {
	s.t.Helper()
	_, err := s.dial(from, to, lost, nil)
	var timeout net.Error
	if !errors.As(err, &timeout) || !timeout.Timeout() {
		s.t.Fatalf("%s → %s: %v, want nothing", from, to, err)
	}
}

// Two nodes with a pod and an address each.
func two(t testing.TB) (a, b *site) {
	a = newSite(t, "10.244.0.5/32", "10.244.0.1/32", "192.0.2.1/32", "10.99.0.5/32", "fd44::5/128", "fd44::1/128")
	b = newSite(t, "10.244.1.5/32", "192.0.2.2/32", "fd44:1::5/128")
	a.open()
	b.open()
	b.serve("10.244.1.5:80")
	b.serve("192.0.2.2:10250")
	return a, b
}

// Pods see each other's addresses, nodes are seen by their address in the pods' subnet,
// and reach each other's own addresses; a tunnel that begins again goes on.
func TestTunnel(t *testing.T) {
	a, b := two(t)
	a.to("10.244.0.1", b.peer("10.244.1.0/24", "192.0.2.2"))
	b.to("10.244.1.1", a.peer("10.244.0.0/24", "192.0.2.1"))
	a.reaches("10.244.0.5", "10.244.1.5:80", "10.244.0.5")
	a.reaches("", "10.244.1.5:80", "10.244.0.1")
	a.reaches("", "192.0.2.2:10250", "10.244.0.1")
	// A source that is not the peer's is not taken.
	a.lost("10.99.0.5", "10.244.1.5:80")
	// Nor is a destination that is not the node's own: it is no router for its peers.
	b.ip("address", "add", "10.244.1.66/32", "dev", "lo")
	b.serve("10.244.1.66:80")
	a.lost("10.244.0.5", "10.244.1.66:80")

	c, err := a.connect("10.244.0.5", "10.244.1.5:80", answerTimeout)
	must(t, err)
	defer c.Close()
	lines := bufio.NewReader(c)
	_, err = lines.ReadString('\n')
	must(t, err)

	// The tunnel of one ends: its packets are refused, not sent elsewhere.
	a.tunnel.Close()
	_, err = io.WriteString(c, "meanwhile\n")
	must(t, err)
	a.refused("10.244.1.5:80")
	local, _ := a.socket.LocalAddr().(*net.UDPAddr)
	a.socket, err = net.ListenUDP("udp", local)
	must(t, err)
	a.open()
	a.to("10.244.0.1", b.peer("10.244.1.0/24", "192.0.2.2"))
	a.reaches("10.244.0.5", "10.244.1.5:80", "10.244.0.5")
	// A connection that was there goes on.
	if line, err := lines.ReadString('\n'); err != nil || line != "meanwhile\n" {
		t.Errorf("a connection that was there: %q, %v", line, err)
	}

	// A node that has left is led to no more.
	a.to("10.244.0.1")
	if _, err := a.dial("", "10.244.1.5:80", answerTimeout, nil); !errors.Is(err, unix.ENETUNREACH) {
		t.Errorf("a node that has left: %v, want %v", err, unix.ENETUNREACH)
	}
}

// Who has another key is nobody.
func TestKey(t *testing.T) {
	a, b := two(t)
	other, err := NewPrivateKey()
	must(t, err)
	stranger := a.peer("10.244.0.0/24", "192.0.2.1")
	stranger.Key = other.Public()
	a.to("10.244.0.1", b.peer("10.244.1.0/24", "192.0.2.2"))
	b.to("10.244.1.1", stranger)
	a.lost("10.244.0.5", "10.244.1.5:80")
	b.to("10.244.1.1", a.peer("10.244.0.0/24", "192.0.2.1"))
	a.reaches("10.244.0.5", "10.244.1.5:80", "10.244.0.5")
}

// Who is not at the address that it is said to have is not answered elsewhere: else a node
// could say that it has the address of somebody else, and get what is for that.
func TestAddress(t *testing.T) {
	a, b := two(t)
	elsewhere, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	must(t, err)
	defer elsewhere.Close()
	liar := a.peer("10.244.0.0/24", "192.0.2.1")
	liar.Endpoint = elsewhere.LocalAddr().(*net.UDPAddr).AddrPort()
	b.to("10.244.1.1", liar)
	a.to("10.244.0.1", b.peer("10.244.1.0/24", "192.0.2.2"))
	a.lost("10.244.0.5", "10.244.1.5:80")
}

// Both families in one tunnel.
func TestIPv6(t *testing.T) {
	a, b := two(t)
	b.serve("[fd44:1::5]:80")
	to, from := b.peer("10.244.1.0/24", "192.0.2.2"), a.peer("10.244.0.0/24", "192.0.2.1")
	to.Pods = append(to.Pods, netip.MustParsePrefix("fd44:1::/64"))
	from.Pods = append(from.Pods, netip.MustParsePrefix("fd44::/64"))
	a.set(Config{Sources: []netip.Addr{netip.MustParseAddr("10.244.0.1"), netip.MustParseAddr("fd44::1")}, Peers: []Peer{to}})
	b.set(Config{Sources: []netip.Addr{netip.MustParseAddr("10.244.1.1"), netip.MustParseAddr("fd44:1::1")}, Peers: []Peer{from}})
	a.reaches("fd44::5", "[fd44:1::5]:80", "fd44::5")
	a.reaches("", "10.244.1.5:80", "10.244.0.1")
}

// What the peers are learnt from is reached without the tunnel.
func TestDirect(t *testing.T) {
	a, b := two(t)
	b.serve("192.0.2.2:6443")
	a.ip("route", "add", "prohibit", "default") // as the uplink
	a.set(Config{Sources: []netip.Addr{netip.MustParseAddr("10.244.0.1")}, Peers: []Peer{b.peer("10.244.1.0/24", "192.0.2.2")},
		Direct: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.2:6443"), netip.MustParseAddrPort("192.0.2.2:6443")}})
	b.to("10.244.1.1", a.peer("10.244.0.0/24", "192.0.2.1"))
	a.reaches("", "192.0.2.2:10250", "10.244.0.1")
	if _, err := a.dial("", "192.0.2.2:6443", answerTimeout, nil); !errors.Is(err, unix.EACCES) {
		t.Errorf("directly: %v, want %v", err, unix.EACCES)
	}
}

// A second tunnel of the same node is refused.
func TestTwice(t *testing.T) {
	a := newSite(t)
	a.open()
	err := a.try(func() error {
		second, err := net.ListenUDP("udp", nil)
		if err != nil {
			return err
		}
		defer second.Close()
		_, err = Open(context.Background(), Options{Socket: second, Key: a.key, Log: slog.New(slog.DiscardHandler)})
		return err
	})
	if !errors.Is(err, ErrDevice) {
		t.Errorf("%v, want %v", err, ErrDevice)
	}
}

func TestLoadPrivateKey(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a", "key")
	one, err := LoadPrivateKey(path)
	must(t, err)
	two, err := LoadPrivateKey(path)
	must(t, err)
	if one.Public() != two.Public() {
		t.Error("the key is another the second time")
	}
	st, err := os.Stat(path)
	must(t, err)
	if st.Mode().Perm() != 0o600 {
		t.Errorf("the key has mode %v", st.Mode())
	}
	if k, err := ParsePublicKey(one.Public().String()); err != nil || k != one.Public() {
		t.Errorf("the public key read again: %v, %v", k, err)
	}
	for _, bad := range []string{"", "x", "AAAA"} {
		must(t, os.WriteFile(path, []byte(bad), 0o600))
		if _, err := LoadPrivateKey(path); !errors.Is(err, ErrBadKey) {
			t.Errorf("a file with %q: %v, want %v", bad, err, ErrBadKey)
		}
		if _, err := ParsePublicKey(bad); !errors.Is(err, ErrBadKey) {
			t.Errorf("%q: %v, want %v", bad, err, ErrBadKey)
		}
	}
}

// The bridge leaves the sources of what goes by the tunnel alone.
func TestName(t *testing.T) {
	if Device != bridge.TunnelDevice {
		t.Errorf("the bridge knows the tunnel as %q, not %q", bridge.TunnelDevice, Device)
	}
}
