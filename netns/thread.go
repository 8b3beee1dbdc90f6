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

// Thread is one permanent OS thread inside the node network namespace. A process
// can enter that namespace but its threads can never go back to the host's
// (setns(2): EPERM), so everything that must be made there is made on this one.
type Thread struct {
	path  string
	calls chan call
	quit  chan struct{}
	once  sync.Once
}

type call struct {
	f    func() error
	done chan error
}

// OpenThread starts the thread and moves it into the network namespace at
// netnsPath ("" = the process's own). Close stops it. Bridges made in a namespace
// given by its path can forward IPv6 at once: for that the kernel needs a link-local
// address that has passed duplicate address detection.
func OpenThread(netnsPath string) (*Thread, error) {
	t := &Thread{path: netnsPath, calls: make(chan call), quit: make(chan struct{})}
	ready := make(chan error, 1)
	go t.run(ready)
	if err := <-ready; err != nil {
		return nil, fmt.Errorf("open node network namespace: %w", err)
	}
	if netnsPath != "" {
		_ = SkipDAD(netnsPath) // where sysctls are read-only, the first second is lost
	}
	return t, nil
}

func (t *Thread) run(ready chan error) {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		// As in onThread: hold the main thread until another one has been taken.
		held := make(chan error, 1)
		go t.run(held)
		ready <- <-held
		runtime.UnlockOSThread()
		return
	}
	if t.path != "" {
		if err := enter(t.path, unix.CLONE_NEWNET); err != nil {
			ready <- err
			return
		}
	}
	ready <- nil
	for {
		select {
		case c := <-t.calls:
			c.done <- c.f()
		case <-t.quit:
			return
		}
	}
}

// Path returns the path of the node network namespace, "" for the process's own.
func (t *Thread) Path() string { return t.path }

// Do runs f on the node's thread and returns its error. Calls run one at a
// time, so f must be short and must not call Do. Sockets that f makes stay in
// the node network namespace and may be used from anywhere. ErrClosed after Close.
func (t *Thread) Do(f func() error) error {
	c := call{f: f, done: make(chan error, 1)}
	select {
	case t.calls <- c:
		return <-c.done
	case <-t.quit:
		return ErrClosed
	}
}

// Listen announces on an address of the node network namespace. The host part
// of addr must be an IP address, or empty for all.
func (t *Thread) Listen(network, addr string) (net.Listener, error) {
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
	err = t.Do(func() (err error) {
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
func (t *Thread) Close() error {
	t.once.Do(func() { close(t.quit) })
	return nil
}
