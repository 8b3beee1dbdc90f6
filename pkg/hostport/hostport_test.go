package hostport

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"reflect"
	"strings"
	"sync"
	"testing"

	"github.com/subpod/subpod/netns"
	"github.com/subpod/subpod/netns/kubeproxy"
	"github.com/subpod/subpod/rootless"
)

// fakeDriver is a port driver in memory.
type fakeDriver struct {
	mu      sync.Mutex
	last    int
	ports   map[int]rootless.PortSpec
	foreign map[uint16]bool // host ports that something else listens on
	stuck   map[int]bool    // IDs that cannot be ended
}

func newFakeDriver() *fakeDriver {
	return &fakeDriver{ports: map[int]rootless.PortSpec{}, foreign: map[uint16]bool{}, stuck: map[int]bool{}}
}

func (d *fakeDriver) Expose(_ context.Context, p rootless.PortSpec) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	taken := d.foreign[p.HostPort]
	for _, have := range d.ports {
		taken = taken || have.Proto == p.Proto && have.HostPort == p.HostPort
	}
	if taken {
		return 0, rootless.ErrPortTaken
	}
	d.last++
	d.ports[d.last] = p
	return d.last, nil
}

var errStuck = errors.New("stuck")

func (d *fakeDriver) Unexpose(_ context.Context, id int) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.stuck[id] {
		return errStuck
	}
	delete(d.ports, id)
	return nil
}

func (d *fakeDriver) Exposed(context.Context) (map[int]rootless.PortSpec, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := map[int]rootless.PortSpec{}
	for id, p := range d.ports {
		out[id] = p
	}
	return out, nil
}

func hostPort(number uint16, last byte) netns.HostPort {
	return netns.HostPort{Proto: "tcp", HostPort: number, TargetIP: netip.AddrFrom4([4]byte{10, 88, 0, last}), TargetPort: 80}
}

// The next run of the server takes over what pods still need, each forwarding once,
// and ends the rest.
func TestTakeOver(t *testing.T) {
	ctx, d := t.Context(), newFakeDriver()
	first := NewForwarder(d)
	for _, p := range []netns.HostPort{hostPort(1000, 2), hostPort(1001, 3)} {
		if _, err := first.Expose(ctx, p); err != nil {
			t.Fatal(err)
		}
	}
	second := NewForwarder(d)
	release, err := second.Expose(ctx, hostPort(1000, 2))
	if err != nil {
		t.Fatalf("take over: %v", err)
	}
	if _, err := second.Expose(ctx, hostPort(1000, 2)); !errors.Is(err, netns.ErrPortTaken) {
		t.Errorf("the same forwarding a second time: %v, want ErrPortTaken", err)
	}
	if _, err := second.Expose(ctx, hostPort(1001, 9)); !errors.Is(err, netns.ErrPortTaken) {
		t.Errorf("a port that is forwarded to another pod: %v, want ErrPortTaken", err)
	}
	if err := second.Sweep(ctx); err != nil {
		t.Fatal(err)
	}
	if want := map[int]rootless.PortSpec{1: rootless.PortSpec(hostPort(1000, 2))}; !reflect.DeepEqual(d.ports, want) {
		t.Errorf("after the sweep: %v, want %v", d.ports, want)
	}
	for range 2 {
		if err := release(ctx); err != nil {
			t.Error(err)
		}
	}
	if len(d.ports) > 0 {
		t.Errorf("after the release: %v", d.ports)
	}
}

// Of many callers that want the same old forwarding one gets it.
func TestTakeOverOnce(t *testing.T) {
	ctx, d := t.Context(), newFakeDriver()
	if _, err := NewForwarder(d).Expose(ctx, hostPort(1000, 2)); err != nil {
		t.Fatal(err)
	}
	f := NewForwarder(d)
	var wg sync.WaitGroup
	got := make(chan error, 8)
	for range cap(got) {
		wg.Go(func() {
			_, err := f.Expose(ctx, hostPort(1000, 2))
			got <- err
		})
	}
	wg.Wait()
	close(got)
	n := 0
	for err := range got {
		if err == nil {
			n++
		} else if !errors.Is(err, netns.ErrPortTaken) {
			t.Errorf("%v, want ErrPortTaken", err)
		}
	}
	if n != 1 {
		t.Errorf("%d callers have the one forwarding", n)
	}
}

func TestForeignPort(t *testing.T) {
	d := newFakeDriver()
	d.foreign[1000] = true
	if _, err := NewForwarder(d).Expose(t.Context(), hostPort(1000, 2)); !errors.Is(err, netns.ErrPortTaken) {
		t.Errorf("%v, want ErrPortTaken", err)
	}
}

// Sweep goes on after an error and reports it.
func TestSweepFails(t *testing.T) {
	ctx, d := t.Context(), newFakeDriver()
	old := NewForwarder(d)
	for i := range uint16(3) {
		if _, err := old.Expose(ctx, hostPort(1000+i, 2)); err != nil {
			t.Fatal(err)
		}
	}
	d.stuck[2] = true
	if err := NewForwarder(d).Sweep(ctx); !errors.Is(err, errStuck) {
		t.Errorf("%v, want %v", err, errStuck)
	}
	if len(d.ports) != 1 {
		t.Errorf("left: %v, want the one that is stuck", d.ports)
	}
}

func TestNoDriver(t *testing.T) {
	var f *Forwarder
	if n := f.Network(); n != nil {
		t.Errorf("the network's forwarder is %v, want nil", n)
	}
	if err := f.Sweep(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestParseExpose(t *testing.T) {
	got, err := ParseExpose([]string{"tcp:8080", "auto", "udp:53"})
	if want := (Expose{Ports: []Port{{"tcp", 8080}, {"udp", 53}}, Auto: true}); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v, %v, want %v", got, err, want)
	}
	if got, err := ParseExpose([]string{"services"}); err != nil || !reflect.DeepEqual(got, Expose{Services: true}) {
		t.Errorf("services: %v, %v", got, err)
	}
	for _, bad := range []string{"", "8080", "tcp", "tcp:0", "tcp:65536", "sctp:1", "tcp:x"} {
		if _, err := ParseExpose([]string{bad}); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}

// What listens is exposed, what no longer does is not; a port that cannot be exposed
// is tried once, and again when it was gone meanwhile; one that cannot be ended is
// ended the next time.
func TestExposer(t *testing.T) {
	ctx, d := t.Context(), newFakeDriver()
	d.foreign[1002] = true
	loopback := func(ports ...uint16) (out []netns.HostPort) {
		for _, p := range ports {
			out = append(out, Port{"tcp", p}.toLoopback())
		}
		return out
	}
	e := &Exposer{Forwarder: NewForwarder(d), Expose: Expose{Ports: []Port{{"tcp", 1000}}}, Log: slog.New(slog.DiscardHandler)}
	e.Start(ctx)
	check := func(step string, want ...uint16) {
		t.Helper()
		have := map[uint16]bool{}
		for _, p := range d.ports {
			have[p.HostPort] = true
		}
		ok := len(have) == len(want)
		for _, w := range want {
			ok = ok && have[w]
		}
		if !ok {
			t.Errorf("%s: forwarded are %v, want %v", step, have, want)
		}
	}
	check("start", 1000)
	e.set(ctx, loopback(1000, 1001, 1002))
	check("two listeners", 1000, 1001)
	delete(d.foreign, 1002)
	e.set(ctx, loopback(1000, 1001, 1002))
	check("a port that could not be exposed is not tried each time", 1000, 1001)
	d.stuck[2] = true
	e.set(ctx, loopback(1000))
	check("the end of one fails", 1000, 1001)
	delete(d.stuck, 2)
	e.set(ctx, loopback(1000, 1002))
	check("tried again", 1000, 1002)
}

// What an earlier run of the server has forwarded is taken over before Sweep ends what
// nobody has.
func TestExposerTakesOver(t *testing.T) {
	ctx, d := t.Context(), newFakeDriver()
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	port := l.Addr().(*net.TCPAddr).AddrPort().Port()
	id, err := d.Expose(ctx, rootless.PortSpec(Port{"tcp", port}.toLoopback()))
	if err != nil {
		t.Fatal(err)
	}
	f := NewForwarder(d)
	e := &Exposer{Forwarder: f, Expose: Expose{Auto: true}, Log: slog.New(slog.DiscardHandler), InNode: func(f func() error) error { return f() }}
	e.Start(ctx)
	if err := f.Sweep(ctx); err != nil {
		t.Fatal(err)
	}
	if left, _ := d.Exposed(ctx); left[id].HostPort != port {
		t.Errorf("forwarding %d, of port %d, has ended: %v", id, port, left)
	}
}

// A NodePort is forwarded from all addresses, once for both families, another port from its
// own; a kubelet's and the tunnel's are not.
func TestOfServices(t *testing.T) {
	at := netip.MustParseAddrPort
	got := ofServices([]kubeproxy.Port{
		{Proto: "tcp", At: at("192.0.2.7:30080"), NodePort: true}, {Proto: "tcp", At: at("[2001:db8::7]:30080"), NodePort: true},
		{Proto: "tcp", At: at("192.0.2.7:80")}, {Proto: "tcp", At: at("192.0.2.7:10250")},
		{Proto: "udp", At: at("192.0.2.7:51820")},
	})
	node := netip.MustParseAddr("192.0.2.7")
	want := []netns.HostPort{
		{Proto: "tcp", HostPort: 30080, TargetIP: node, TargetPort: 30080},
		{Proto: "tcp", HostIP: node, HostPort: 80, TargetIP: node, TargetPort: 80},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestAppendListeners(t *testing.T) {
	const tcp = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1
   1: 0100007F:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1
   2: 00000000:0016 0A00020F:8000 01 00000000:00000000 00:00000000 00000000     0        0 1 1
   3: 00000000:ZZZZ 00000000:0000 0A
`
	const tcp6 = `   0: 00000000000000000000000000000000:1F90 00000000000000000000000000000000:0000 0A 0
   1: 00000000000000000000000000000000:0051 00000000000000000000000000000000:0000 0A 0
   2: 00000000000000000000000000000000:280A 00000000000000000000000000000000:0000 0A 0
   3: 00000000000000000000000000000000:094B 00000000000000000000000000000000:0000 0A 0
`
	var out []Port
	var err error
	for _, table := range []string{tcp, tcp6} {
		if out, err = appendListeners(out, strings.NewReader(table)); err != nil {
			t.Fatal(err)
		}
	}
	// A kubelet's and etcd's are not among them.
	if want := []Port{{"tcp", 8080}, {"tcp", 0x51}}; !reflect.DeepEqual(out, want) {
		t.Errorf("%v, want %v", out, want)
	}
}
