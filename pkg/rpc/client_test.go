package rpc_test

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/grpc/peer"

	"github.com/subpod/subpod/pkg/rpc"
)

// TestClientOf: a connection's client is who has made it, by the kernel's word.
func TestClientOf(t *testing.T) {
	if c := rpc.ClientOf(context.Background()); c.UID != -1 || c.PID != 0 {
		t.Errorf("without a connection: %+v", c)
	}
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	identified := rpc.Identify(l)
	defer identified.Close()
	out, err := net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	in, err := identified.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	ctx := peer.NewContext(context.Background(), &peer.Peer{Addr: in.RemoteAddr()})
	got := rpc.ClientOf(ctx)
	comm, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		t.Fatal(err)
	}
	if got.UID != os.Getuid() || got.PID != os.Getpid() || got.Program+"\n" != string(comm) {
		t.Errorf("%+v, want UID %d, PID %d, program %s", got, os.Getuid(), os.Getpid(), comm)
	}
}
