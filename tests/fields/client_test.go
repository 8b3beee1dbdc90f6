package fields

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/subpod/subpod/tests/node"
)

// TestKubeletClient runs tests/client, a module of its own: k8s.io/cri-client, by
// which the kubelet talks to a runtime, against this daemon.
func TestKubeletClient(t *testing.T) {
	const binary = ".cache/bin/client.test"
	path := node.Path(t, binary)
	script := filepath.Join(os.Getenv("SUBPOD_TEST_DIR"), "plain-runtime")
	// An OCI runtime without a list of its features.
	err := os.WriteFile(script, []byte(`#!/bin/sh
case "$*" in
*--version*) echo "plain version 1.0" ;;
features) exit 1 ;;
*) exec crun "$@" ;;
esac
`), 0o700)
	if err != nil {
		t.Fatal(err)
	}
	n := node.Prepare(t, node.Options{Config: bridge + "[runtime.handlers.plain]\npath = \"" + script + "\"\n"})
	n.WriteHome(".config/containers/policy.json", `{"default": [{"type": "insecureAcceptAnything"}],
		"transports": {"docker": {"gcr.io/k8s-staging-cri-tools/test-image-1": [{"type": "reject"}]}}}`)
	n.Run()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := n.Command(ctx, path, "-test.v", "-test.count=1")
	cmd.Env = append(cmd.Env, "SUBPOD_CLIENT_SOCKET="+n.Socket, "SUBPOD_CLIENT_DIR="+n.Dir)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%s: %v\n%s", binary, err, out)
	}
}
