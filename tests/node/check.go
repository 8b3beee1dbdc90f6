package node

import (
	"math/rand/v2"
	"net"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/subpod/subpod/tests/leak"
)

// Images that nearly all tests run.
const (
	Busybox = "docker.io/library/busybox:latest"
	Nginx   = "registry.k8s.io/e2e-test-images/nginx:1.14-2"
)

// Bridge is the configuration of the built-in network: a machine may have CNI
// configuration of its own (Podman's packages install one).
const Bridge = "[network]\nbackend = \"bridge\"\n"

// Converge is how long Eventually waits for what a daemon does in well under a second.
// It is no measure of speed: it only ends a test that would wait forever, so it is
// long enough for a machine that does much else.
const Converge = 60 * time.Second

// Eventually repeats a check until it returns nil, and fails the test when it does not
// within Converge.
func Eventually(t testing.TB, what string, check func() error) {
	t.Helper()
	EventuallyWithin(t, what, Converge, check)
}

// EventuallyWithin is Eventually with another limit.
func EventuallyWithin(t testing.TB, what string, within time.Duration, check func() error) {
	t.Helper()
	for deadline := time.Now().Add(within); ; time.Sleep(20 * time.Millisecond) {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v: %v", what, within, err)
		}
	}
}

// Contains fails the test for each of want that got does not contain.
func Contains(t testing.TB, what, got string, want ...string) {
	t.Helper()
	for _, w := range want {
		if !strings.Contains(got, w) {
			t.Errorf("%s: no %q in:\n%s", what, w, got)
		}
	}
}

// Look takes a snapshot of the inside of the node. Take the first one after a pod has
// come and gone, and when everything that the test keeps has been pulled.
func (n *Node) Look() leak.Snapshot {
	n.t.Helper()
	s, err := leak.Node(n.TryEnter, n.RunDir)
	if err != nil {
		n.t.Error(err)
		return leak.Snapshot{}
	}
	return s
}

// NothingLeft fails the test for all that is in the node and was not before.
func (n *Node) NothingLeft(before leak.Snapshot) {
	n.t.Helper()
	for _, left := range leak.Left(before, n.Look) {
		n.t.Errorf("left in the node: %s", left)
	}
}

// nextPort begins anywhere: tests of several packages look for ports at the same time.
var nextPort = func() *atomic.Uint32 {
	n := new(atomic.Uint32)
	n.Store(rand.Uint32N(10000))
	return n
}()

// FreePort returns a port that nobody listens on, on any address. It is below those that the
// kernel gives to whoever asks for any: a server that starts before the test uses the port
// would otherwise have it for its streams, for as long as it lives. A test gets another one
// at each call.
func FreePort(t testing.TB) int {
	t.Helper()
	for range 10000 {
		port := 20000 + int(nextPort.Add(1)%10000)
		if l, err := net.Listen("tcp", ":"+strconv.Itoa(port)); err == nil {
			l.Close()
			return port
		}
	}
	t.Fatal("no port between 20000 and 30000 is free")
	return 0
}
