package pod

import (
	"errors"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/labels"
	"github.com/subpod/subpod/pkg/state"
)

// Where there is no pod network, a pod that wants one is on the node's, and its
// ports are the host's.
func TestOnHostNetwork(t *testing.T) {
	r := &Runtime{Options: Options{HostNetwork: true}}
	config := func(host, container int32) *runtimeapi.PodSandboxConfig {
		return &runtimeapi.PodSandboxConfig{Hostname: "web", PortMappings: []*runtimeapi.PortMapping{{HostPort: host, ContainerPort: container}}}
	}
	asked := config(8080, 8080)
	got, err := r.onHostNetwork(asked)
	if err != nil || !state.OnNode(state.NamespaceOptions(got).GetNetwork()) || got.Hostname != "" {
		t.Errorf("got %v, %v", got, err)
	}
	if asked.Linux != nil || asked.Hostname != "web" {
		t.Errorf("the request itself was changed: %v", asked)
	}
	_, err = r.onHostNetwork(config(8080, 80))
	if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "host port 8080 cannot lead to port 80") {
		t.Errorf("another port: %v", err)
	}
	none := config(0, 0)
	none.Annotations = map[string]string{labels.Network: labels.NoNetwork}
	if got, err := r.onHostNetwork(none); err != nil || got != none {
		t.Errorf("a pod without a network: %v, %v", got, err)
	}
	if got, err := (&Runtime{}).onHostNetwork(asked); err != nil || got != asked {
		t.Errorf("with a pod network: %v, %v", got, err)
	}
}
