package sandbox

import (
	"errors"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/api"
	"github.com/subpod/subpod/pkg/state"
)

// Where there is no pod network, a pod that wants one is on the node's, and its
// ports are the host's.
func TestOnHostNetwork(t *testing.T) {
	onHostNetwork := func(cfg *runtimeapi.PodSandboxConfig, host Host) (*runtimeapi.PodSandboxConfig, error) {
		cfg.Metadata = &runtimeapi.PodSandboxMetadata{Name: "web"}
		p, err := NewPlan("id", cfg, host)
		return p.Config, err
	}
	host := Host{HostNetwork: true}
	config := func(host, container int32) *runtimeapi.PodSandboxConfig {
		return &runtimeapi.PodSandboxConfig{Hostname: "web", PortMappings: []*runtimeapi.PortMapping{{HostPort: host, ContainerPort: container}}}
	}
	asked := config(8080, 8080)
	got, err := onHostNetwork(asked, host)
	if err != nil || !state.OnNode(state.NamespaceOptions(got).GetNetwork()) || got.Hostname != "" {
		t.Errorf("got %v, %v", got, err)
	}
	if asked.Linux != nil || asked.Hostname != "web" {
		t.Errorf("the request itself was changed: %v", asked)
	}
	_, err = onHostNetwork(config(8080, 80), host)
	if !errors.Is(err, errdefs.ErrInvalidArgument) || !strings.Contains(err.Error(), "host port 8080 cannot lead to port 80") {
		t.Errorf("another port: %v", err)
	}
	none := config(0, 0)
	none.Annotations = map[string]string{api.AnnotationNetwork: api.NetworkNone}
	if got, err := onHostNetwork(none, host); err != nil || got != none {
		t.Errorf("a pod without a network: %v, %v", got, err)
	}
	if got, err := onHostNetwork(asked, Host{}); err != nil || got != asked {
		t.Errorf("with a pod network: %v, %v", got, err)
	}
}

// TestHostPortTwice: two mappings of one pod cannot have the same host port.
func TestHostPortTwice(t *testing.T) {
	type mapping = runtimeapi.PortMapping
	for name, c := range map[string]struct {
		a, b    *mapping
		refused bool
	}{
		"another container port": {&mapping{HostPort: 80, ContainerPort: 1}, &mapping{HostPort: 80, ContainerPort: 2}, true},
		"the same":               {&mapping{HostPort: 80, ContainerPort: 1}, &mapping{HostPort: 80, ContainerPort: 1}, true},
		"one family of both":     {&mapping{HostPort: 80, ContainerPort: 1}, &mapping{HostPort: 80, ContainerPort: 2, HostIp: "::"}, true},
		"the same address":       {&mapping{HostPort: 80, ContainerPort: 1, HostIp: "127.0.0.1"}, &mapping{HostPort: 80, ContainerPort: 2, HostIp: "::ffff:127.0.0.1"}, true},
		"another protocol":       {&mapping{HostPort: 80, ContainerPort: 1}, &mapping{HostPort: 80, ContainerPort: 1, Protocol: runtimeapi.Protocol_UDP}, false},
		"another address":        {&mapping{HostPort: 80, ContainerPort: 1, HostIp: "127.0.0.1"}, &mapping{HostPort: 80, ContainerPort: 2, HostIp: "127.0.0.2"}, false},
		"two families":           {&mapping{HostPort: 80, ContainerPort: 1, HostIp: "0.0.0.0"}, &mapping{HostPort: 80, ContainerPort: 2, HostIp: "::"}, false},
		"no host port":           {&mapping{ContainerPort: 1}, &mapping{ContainerPort: 1}, false},
	} {
		_, err := NewPlan("id", &runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Name: "web"}, PortMappings: []*mapping{c.a, c.b}}, Host{})
		if refused := errors.Is(err, errdefs.ErrInvalidArgument) && strings.Contains(err.Error(), "mapped twice"); refused != c.refused {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestHostIP: an address that nothing could listen at is a bad request.
func TestHostIP(t *testing.T) {
	for text, good := range map[string]bool{
		"": true, "0.0.0.0": true, "::1": true, "::ffff:127.0.0.1": true,
		"x": false, "127.0.0.1:80": false, "fe80::1%eth0": false, "fe80::1%eth0;id": false,
	} {
		_, err := parsePorts(&runtimeapi.PodSandboxConfig{PortMappings: []*runtimeapi.PortMapping{{HostPort: 80, ContainerPort: 80, HostIp: text}}})
		if good && err != nil || !good && !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("host_ip %q: %v", text, err)
		}
	}
}
