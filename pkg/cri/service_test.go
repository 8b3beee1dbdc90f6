package cri

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/netns"
)

// network records the pod CIDRs that it gets.
type network struct {
	netns.HostNetwork
	set []string
	err error
}

func (n *network) SetPodCIDR(_ context.Context, cidrs []netip.Prefix) error {
	n.set = append(n.set, fmt.Sprint(cidrs))
	return n.err
}

// TestUpdateRuntimeConfig: the network gets all CIDRs of a request at once, and none of
// one that is malformed.
func TestUpdateRuntimeConfig(t *testing.T) {
	for _, c := range []struct {
		text, set string
		code      codes.Code
	}{
		{"", "", codes.OK},
		{" , ", "", codes.OK},
		{"10.1.0.0/16", "[10.1.0.0/16]", codes.OK},
		{"10.1.0.0/16, fd00::/64", "[10.1.0.0/16 fd00::/64]", codes.OK},
		{"10.1.0.0/16,10.1.2.3", "", codes.InvalidArgument},
		{"10.1.0.0/33", "", codes.InvalidArgument},
	} {
		n := &network{}
		s := &nodeService{network: n}
		_, err := s.UpdateRuntimeConfig(t.Context(), &runtimeapi.UpdateRuntimeConfigRequest{
			RuntimeConfig: &runtimeapi.RuntimeConfig{NetworkConfig: &runtimeapi.NetworkConfig{PodCidr: c.text}},
		})
		if status.Code(err) != c.code {
			t.Errorf("%q: %v, want %v", c.text, err, c.code)
		}
		if got := fmt.Sprint(n.set); got != "["+c.set+"]" {
			t.Errorf("%q: the network got %s, want [%s]", c.text, got, c.set)
		}
	}
	refused := errors.New("refused")
	s := &nodeService{network: &network{err: refused}}
	_, err := s.UpdateRuntimeConfig(t.Context(), &runtimeapi.UpdateRuntimeConfigRequest{
		RuntimeConfig: &runtimeapi.RuntimeConfig{NetworkConfig: &runtimeapi.NetworkConfig{PodCidr: "10.1.0.0/16"}},
	})
	if !errors.Is(err, refused) {
		t.Errorf("the network's error is %v", err)
	}
}

// TestFit: the output of an ExecSync fits into a message, and the smaller stream is kept.
func TestFit(t *testing.T) {
	for _, c := range []struct{ stdout, stderr, wantOut, wantErr int }{
		{0, 0, 0, 0},
		{10, 20, 10, 20},
		{maxOutput, 0, maxOutput, 0},
		{maxOutput + 1, 0, maxOutput, 0},
		{2 * maxOutput, 100, maxOutput - 100, 100},
		{100, 2 * maxOutput, 100, maxOutput - 100},
		{maxOutput, maxOutput, maxOutput / 2, maxOutput / 2},
	} {
		stdout, stderr := fit(bytes.Repeat([]byte("o"), c.stdout), bytes.Repeat([]byte("e"), c.stderr))
		if len(stdout) != c.wantOut || len(stderr) != c.wantErr {
			t.Errorf("%d and %d bytes become %d and %d, want %d and %d", c.stdout, c.stderr, len(stdout), len(stderr), c.wantOut, c.wantErr)
		}
	}
}

func TestSendChunks(t *testing.T) {
	items := make([]int, 2*chunk+1)
	var sizes []int
	if err := sendChunks(items, func(c []int) error { sizes = append(sizes, len(c)); return nil }); err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprint([]int{chunk, chunk, 1}); fmt.Sprint(sizes) != want {
		t.Errorf("chunks of %v, want %s", sizes, want)
	}
	gone, calls := errors.New("gone"), 0
	if err := sendChunks(items, func([]int) error { calls++; return gone }); !errors.Is(err, gone) || calls != 1 {
		t.Errorf("after an error: %v, %d calls", err, calls)
	}
}
