package node

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// CrictlArgs are crictl's own arguments before the command.
func (n *Node) CrictlArgs(args ...string) []string {
	endpoint := "unix://" + n.Socket
	return append([]string{"--config", "/dev/null", "--runtime-endpoint", endpoint, "--image-endpoint", endpoint, "--timeout", "60s"}, args...)
}

// TryCrictl runs crictl and returns its standard output.
func (n *Node) TryCrictl(args ...string) (string, error) {
	n.t.Helper()
	return n.output(Path(n.t, Crictl), n.CrictlArgs(args...)...)
}

// Crictl runs crictl, which must succeed, and returns its output without the
// white space around it.
func (n *Node) Crictl(args ...string) string {
	n.t.Helper()
	out, err := n.TryCrictl(args...)
	if err != nil {
		n.t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// CrictlJSON runs crictl, which must succeed, and decodes its output into v.
func (n *Node) CrictlJSON(v any, args ...string) {
	n.t.Helper()
	out := n.Crictl(args...)
	if err := json.Unmarshal([]byte(out), v); err != nil {
		n.t.Fatalf("crictl %s: %v in %q", strings.Join(args, " "), err, out)
	}
}

// CrictlCommand prepares crictl for a test that talks to it while it runs.
func (n *Node) CrictlCommand(ctx context.Context, args ...string) *exec.Cmd {
	n.t.Helper()
	return n.Command(ctx, Path(n.t, Crictl), n.CrictlArgs(args...)...)
}

// File writes a value as JSON for crictl and returns the path.
func (n *Node) File(name string, v any) string {
	n.t.Helper()
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		n.t.Fatal(err)
	}
	path := filepath.Join(n.Dir, name)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		n.t.Fatal(err)
	}
	return path
}

// Client is both CRI services.
type Client struct {
	runtimeapi.RuntimeServiceClient
	runtimeapi.ImageServiceClient
}

// CRI connects to the daemon's socket.
func (n *Node) CRI() Client {
	n.t.Helper()
	conn, err := Dial(n.Socket)
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { conn.Close() })
	return Client{runtimeapi.NewRuntimeServiceClient(conn), runtimeapi.NewImageServiceClient(conn)}
}

// Dial connects to a CRI socket as the kubelet does (16 MiB messages).
func Dial(socket string) (*grpc.ClientConn, error) {
	conn, err := grpc.NewClient("unix://"+socket,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20)))
	if err != nil {
		return nil, fmt.Errorf("dial %s: %w", socket, err)
	}
	return conn, nil
}
