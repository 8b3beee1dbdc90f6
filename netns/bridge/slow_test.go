package bridge

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/subpod/subpod/netns"
	"github.com/subpod/subpod/tests/nettest"
)

// hungForwarder answers for one port only when it is told to.
type hungForwarder struct {
	port           uint16
	called, answer chan struct{}
}

func (h *hungForwarder) Expose(_ context.Context, p netns.HostPort) (func(context.Context) error, error) {
	if p.HostPort == h.port {
		close(h.called)
		<-h.answer
	}
	return func(context.Context) error { return nil }, nil
}

// soon fails the test when f has not returned long before anything that it must not
// wait for.
func soon(t *testing.T, what string, f func() error) {
	t.Helper()
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		nettest.Must(t, err)
	case <-time.After(time.Minute):
		t.Fatalf("%s waits for another pod", what)
	}
}

// TestHungForwarder: while a pod's host port is being forwarded, without end, the
// packet filter is flushed. The repair, Status and other pods go on, and what a pod
// had that was torn down meanwhile does not come back.
func TestHungForwarder(t *testing.T) {
	w := newWorld(t)
	forward := &hungForwarder{port: 9999, called: make(chan struct{}), answer: make(chan struct{})}
	b := w.bridge(Options{Ports: forward, Isolate: true})
	answer := sync.OnceFunc(func() { close(forward.answer) })
	t.Cleanup(answer)
	ctx := context.Background()
	port := func(n int) netns.PortMapping {
		return netns.PortMapping{Proto: "tcp", HostPort: uint16(n), ContainerPort: 80}
	}
	var others []netns.Pod
	for i := range 8 {
		others = append(others, w.Pod(fmt.Sprint(i), port(7000+i)))
		w.Setup(b, others[i])
	}
	hung := w.Pod("hung", port(9999))
	done := make(chan error, 1)
	go func() {
		_, err := b.Setup(ctx, hung)
		done <- err
	}()
	<-forward.called
	nettest.Must(t, w.Thread.Do(func() error { return exec.Command("nft", "flush", "ruleset").Run() }))
	soon(t, "Teardown", func() error { return b.Teardown(ctx, others[0].ID) })
	soon(t, "Status", func() error { return b.Status(ctx) })
	soon(t, "Setup", func() error { _, err := b.Setup(ctx, w.Pod("next")); return err })
	w.Serve(others[1].NetNS, "one", 80)
	w.WantAnswer(w.NodeNS, "tcp", "127.0.0.1:7001", "one", "")
	for _, p := range others[2:] {
		soon(t, "Teardown", func() error { return b.Teardown(ctx, p.ID) })
	}
	canceled, cancel := context.WithCancel(ctx)
	cancel()
	soon(t, "Teardown of the same pod", func() error {
		if err := b.Teardown(canceled, hung.ID); !errors.Is(err, context.Canceled) {
			return fmt.Errorf("a canceled Teardown of a pod that is being set up: %w", err)
		}
		return nil
	})
	answer()
	nettest.Must(t, <-done)
	nettest.Must(t, b.Status(ctx))
	w.Serve(hung.NetNS, "hung", 80)
	w.WantAnswer(w.NodeNS, "tcp", "127.0.0.1:9999", "hung", "")
	for i := 2; i < 8; i++ {
		if rules := w.nft(); strings.Contains(rules, fmt.Sprint(7000+i)) {
			t.Errorf("port %d of a pod that is gone leads somewhere:\n%s", 7000+i, rules)
		}
	}
}

// TestGatewayWait: a Setup that waits for the bridge's own IPv6 address leaves the
// node's thread to others.
func TestGatewayWait(t *testing.T) {
	w := newWorld(t)
	b := w.bridge(Options{})
	// Its addresses will never be found now.
	nettest.Must(t, w.Thread.Do(func() error { return setSysctl("net/ipv6/conf/subpod0/disable_ipv6", 1) }))
	begin, done := time.Now(), make(chan error, 1)
	go func() {
		_, err := b.Setup(context.Background(), w.Pod("one"))
		done <- err
	}()
	var longest time.Duration
	for {
		start := time.Now()
		nettest.Must(t, w.Thread.Do(func() error { return nil }))
		longest = max(longest, time.Since(start))
		select {
		case err := <-done:
			nettest.Must(t, err)
			if all := time.Since(begin); longest > all*3/4 {
				t.Errorf("the node's thread was busy for %v of the %v that Setup took", longest, all)
			}
			return
		case <-time.After(time.Millisecond):
		}
	}
}
