package bridge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/subpod/subpod/netns"
	"github.com/subpod/subpod/tests/nettest"
)

// TestDamageIsRepaired: what somebody breaks by hand in the node is put back, at
// once and without a restart.
func TestDamageIsRepaired(t *testing.T) {
	for name, damage := range map[string]string{
		"bridge deleted":          "ip link del subpod0",
		"bridge down":             "ip link set subpod0 down",
		"link out of the bridge":  "ip link set " + vethName(nettest.PodID("one")) + " nomaster",
		"packet filter flushed":   "nft flush ruleset",
		"isolation deleted":       "nft delete table bridge subpod",
		"port security deleted":   "nft delete table bridge subpod-ports",
		"everything at once":      "ip link del subpod0; nft flush ruleset",
		"another one in its name": "ip link del subpod0; ip link add subpod0 type bridge || true",
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			b := w.bridge(Options{Isolate: true})
			one, two := w.Pod("one", netns.PortMapping{Proto: "tcp", HostPort: 8080, ContainerPort: 80}), w.Pod("two")
			r := w.Setup(b, one)
			w.Setup(b, two)
			w.Serve(one.NetNS, "one", 80)
			w.Serve(w.Outside, "outside", 80)
			nettest.Must(t, w.Thread.Do(func() error { return exec.Command("sh", "-c", damage).Run() }))
			answers := func(from, addr, server string) func() bool {
				return func() bool {
					got, err := w.Ask(from, "tcp", addr)
					return err == nil && len(got) > len(server) && got[:len(server)] == server
				}
			}
			for _, ip := range r.IPs {
				nettest.Eventually(t, "pod to pod", answers(two.NetNS, nettest.HostPort(ip, 80), "one"))
			}
			nettest.Eventually(t, "pod to outside", answers(one.NetNS, "192.0.2.1:80", "outside"))
			nettest.Eventually(t, "host port", answers(w.Outside, "192.0.2.2:8080", "one"))
			w.Setup(b, w.Pod("three"))
		})
	}
}

// TestRepairWithoutNeighbours: a bridge that was made again whose neighbours could not be
// entered is used all the same, and all else is put back.
func TestRepairWithoutNeighbours(t *testing.T) {
	w := newWorld(t)
	b := w.bridge(Options{})
	one, two := w.Pod("one"), w.Pod("two")
	r := w.Setup(b, one)
	w.Setup(b, two)
	w.Serve(one.NetNS, "one", 80)
	remade := make(chan struct{}, 1)
	b.repairer.mu.Lock()
	b.repairer.meet = func() error { return errors.New("refused for the test") }
	b.repairer.remade = func() { remade <- struct{}{} }
	b.repairer.mu.Unlock()
	nettest.Must(t, w.Thread.Do(func() error { return exec.Command("ip", "link", "del", "subpod0").Run() }))
	nettest.Eventually(t, "the bridge is reported as made again", func() bool { return len(remade) > 0 })
	for _, ip := range r.IPs {
		nettest.Eventually(t, "pod to pod", func() bool {
			got, err := w.Ask(two.NetNS, "tcp", nettest.HostPort(ip, 80))
			return err == nil && strings.HasPrefix(got, "one")
		})
	}
}

// TestSetupWhileDamaged connects pods while somebody deletes what they share, at any moment.
func TestSetupWhileDamaged(t *testing.T) {
	for _, damage := range []string{"ip link del subpod0", "nft delete table inet subpod", "nft delete table bridge subpod-ports", "nft flush ruleset"} {
		t.Run(damage, func(t *testing.T) {
			w := newWorld(t)
			b := w.bridge(Options{})
			for n := range 20 {
				pod := w.Pod(fmt.Sprint("pod", n), netns.PortMapping{Proto: "tcp", HostPort: 8080, ContainerPort: 80})
				pod.IngressRate = 1e9
				done := make(chan error, 1)
				go func() { done <- w.Thread.Do(func() error { return exec.Command("sh", "-c", damage).Run() }) }()
				time.Sleep(time.Duration(n) * 300 * time.Microsecond)
				w.Setup(b, pod)
				nettest.Must(t, <-done)
				nettest.Must(t, b.Teardown(context.Background(), pod.ID))
				nettest.Must(t, b.Status(context.Background()))
			}
		})
	}
}

// oneForwarder refuses what it has forwarded already, and one port, while damage is done.
type oneForwarder struct {
	refused uint16
	damage  func()
	has     map[netns.HostPort]bool
}

func (f *oneForwarder) Expose(_ context.Context, p netns.HostPort) (func(context.Context) error, error) {
	if p.HostPort == f.refused {
		f.damage()
	}
	if p.HostPort == f.refused || f.has[p] {
		return nil, netns.ErrPortTaken
	}
	f.has[p] = true
	return func(context.Context) error { delete(f.has, p); return nil }, nil
}

// TestRefusedWhileDamaged: the host port that is taken is the one that is named, also where
// somebody deletes at that moment what pods share.
func TestRefusedWhileDamaged(t *testing.T) {
	w := newWorld(t)
	forward := &oneForwarder{refused: 9999, has: map[netns.HostPort]bool{}, damage: func() {
		nettest.Must(t, w.Thread.Do(func() error { return exec.Command("nft", "delete", "table", "inet", "subpod").Run() }))
	}}
	b := w.bridge(Options{Ports: forward})
	pod := w.Pod("one", netns.PortMapping{Proto: "tcp", HostPort: 8080, ContainerPort: 80}, netns.PortMapping{Proto: "tcp", HostPort: 9999, ContainerPort: 81})
	if _, err := b.Setup(t.Context(), pod); !errors.Is(err, netns.ErrPortTaken) || !strings.Contains(err.Error(), "9999") {
		t.Errorf("error %v", err)
	}
	if len(forward.has) > 0 {
		t.Errorf("forwarded: %v", forward.has)
	}
}

// TestRepairIsLogged: the log says what was damaged, also where a pod has it repaired before
// the repairer comes to it.
func TestRepairIsLogged(t *testing.T) {
	w := newWorld(t)
	said := make(logged, 100)
	b := w.bridge(Options{Log: slog.New(slog.NewTextHandler(said, nil))})
	pod := w.Pod("one")
	nettest.Must(t, w.Thread.Do(func() error { return exec.Command("nft", "delete", "table", "bridge", "subpod-ports").Run() }))
	w.Setup(b, pod)
	select {
	case line := <-said:
		if !strings.Contains(line, "bridge subpod-ports") {
			t.Errorf("line %q", line)
		}
	case <-time.After(10 * time.Second):
		t.Error("the log says nothing")
	}
}

// logged are the lines of a log.
type logged chan string

// Write implements io.Writer.
func (l logged) Write(line []byte) (int, error) { l <- string(line); return len(line), nil }
