package netns

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// ErrClosed says that the node's thread has been stopped by Close.
var ErrClosed = errors.New("node network namespace is closed")

// Node is one permanent OS thread inside the node network namespace. A process
// can enter that namespace but its threads can never go back to the host's
// (setns(2): EPERM), so everything that must be made there is made on this one.
type Node struct {
	path  string
	calls chan call
	quit  chan struct{}
	once  sync.Once
}

type call struct {
	f    func() error
	done chan error
}

// OpenNode starts the thread and moves it into the network namespace at
// netnsPath ("" = the process's own). Close stops it. Bridges made in a namespace
// given by its path can forward IPv6 at once: for that the kernel needs a link-local
// address that has passed duplicate address detection.
func OpenNode(netnsPath string) (*Node, error) {
	n := &Node{path: netnsPath, calls: make(chan call), quit: make(chan struct{})}
	ready := make(chan error, 1)
	go n.run(ready)
	if err := <-ready; err != nil {
		return nil, fmt.Errorf("open node network namespace: %w", err)
	}
	if netnsPath != "" {
		_ = SkipDAD(netnsPath) // where sysctls are read-only, the first second is lost
	}
	return n, nil
}

func (n *Node) run(ready chan error) {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		// As in onThread: hold the main thread until another one has been taken.
		held := make(chan error, 1)
		go n.run(held)
		ready <- <-held
		runtime.UnlockOSThread()
		return
	}
	if n.path != "" {
		if err := enter(n.path, unix.CLONE_NEWNET); err != nil {
			ready <- err
			return
		}
	}
	ready <- nil
	for {
		select {
		case c := <-n.calls:
			c.done <- c.f()
		case <-n.quit:
			return
		}
	}
}

// Path returns the path of the node network namespace, "" for the process's own.
func (n *Node) Path() string { return n.path }

// Do runs f on the node's thread and returns its error. Calls run one at a
// time, so f must be short and must not call Do. Sockets that f makes stay in
// the node network namespace and may be used from anywhere. ErrClosed after Close.
func (n *Node) Do(f func() error) error {
	c := call{f: f, done: make(chan error, 1)}
	select {
	case n.calls <- c:
		return <-c.done
	case <-n.quit:
		return ErrClosed
	}
}

// Listen announces on an address of the node network namespace. The host part
// of addr must be an IP address, or empty for all.
func (n *Node) Listen(network, addr string) (net.Listener, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fmt.Errorf("listen in the node: %w", err)
	}
	if host != "" {
		// A name would be looked up by goroutines outside the namespace.
		if _, err := netip.ParseAddr(host); err != nil {
			return nil, fmt.Errorf("listen in the node: host must be an IP address: %w", err)
		}
	}
	var l net.Listener
	err = n.Do(func() (err error) {
		l, err = (&net.ListenConfig{}).Listen(context.Background(), network, addr)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listen in the node: %w", err)
	}
	return l, nil
}

// Close ends the thread. Sockets and listeners that it made stay open.
// Idempotent.
func (n *Node) Close() error {
	n.once.Do(func() { close(n.quit) })
	return nil
}
