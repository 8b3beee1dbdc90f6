package sandbox

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/netns"
	"github.com/subpod/subpod/pkg/api"
)

// TestHosts: a pod with aliases still knows its own name.
func TestHosts(t *testing.T) {
	dir := t.TempDir()
	if err := os.MkdirAll(filepath.Join(dir, etcDir), 0o755); err != nil {
		t.Fatal(err)
	}
	plan := func(aliases string) (Plan, error) {
		return NewPlan("id", &runtimeapi.PodSandboxConfig{
			Metadata: &runtimeapi.PodSandboxMetadata{Name: "web"}, Hostname: "web",
			Annotations: map[string]string{api.AnnotationHostAliases: aliases},
		}, Host{})
	}
	p, err := plan(`[{"ip": "192.0.2.9", "hostnames": ["a.example", "b"]}, {"ip": "2001:db8::1", "hostnames": ["six"]}]`)
	if err != nil {
		t.Fatal(err)
	}
	network := &netns.Result{IPs: []netip.Addr{netip.MustParseAddr("10.88.0.2"), netip.MustParseAddr("fd00::2")}}
	if err := writeHosts(dir, p, network); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join(dir, etcDir, "hosts"))
	want := "10.88.0.2\tweb\nfd00::2\tweb\n192.0.2.9\ta.example b\n2001:db8::1\tsix\n"
	if err != nil || !strings.HasPrefix(string(got), "127.0.0.1\tlocalhost\n") || !strings.HasSuffix(string(got), want) {
		t.Errorf("hosts: %v\n%s\nwant at its end\n%s", err, got, want)
	}
	for _, bad := range []string{`{`, `[{"ip": "x", "hostnames": ["a"]}]`, `[{"ip": "192.0.2.9", "hostnames": ["a\n0.0.0.0 b"]}]`, `[{"ip": "192.0.2.9", "hostnames": [""]}]`} {
		if _, err := plan(bad); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%s: %v, want InvalidArgument", bad, err)
		}
	}
}
