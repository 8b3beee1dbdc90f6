package main

import (
	"net"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/subpod/subpod/pkg/rpc"
)

// Clients that have connected and say nothing, or half of the first word, do not hold the
// server's end.
func TestShutDownWithSilentClients(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	clients, server := rpc.Identify(accepting{l, make(chan struct{}, 2)}), grpc.NewServer()
	served := make(chan error, 1)
	go func() { served <- server.Serve(clients) }()
	for _, said := range []string{"", "PRI * HTTP/2.0"} {
		c, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := c.Write([]byte(said)); err != nil {
			t.Fatal(err)
		}
		<-clients.Listener.(accepting).accepted
	}
	ended := make(chan error, 1)
	go func() {
		shutDown(server, clients)
		ended <- <-served
	}()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(time.Minute): // gRPC itself waits for two
		t.Fatal("the server waits for its silent clients")
	}
}

// accepting tells of the connections that it has accepted.
type accepting struct {
	net.Listener
	accepted chan struct{}
}

// Accept implements net.Listener.
func (l accepting) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err == nil {
		l.accepted <- struct{}{}
	}
	return c, err
}
