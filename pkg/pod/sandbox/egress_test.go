package sandbox

import (
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/api"
)

// TestEgress: which pods are switched, and what those are told that ask for it and cannot be.
func TestEgress(t *testing.T) {
	on := Egress{Off: func() string { return "" }, Closed: func(network string) bool { return network == "inside" }}
	always, off := on, on
	always.Always = true
	off.Off = func() string { return "it is off" }
	limited := map[string]string{egressAnnotation: "1M"}
	internal := map[string]string{api.AnnotationNetworks: `{"networks":[{"name":"inside"}]}`}
	both := map[string]string{api.AnnotationNetworks: `{"networks":[{"name":"inside"},{"name":"out"}]}`}
	for name, c := range map[string]struct {
		node     Egress
		asked    string
		more     map[string]string
		network  runtimeapi.NamespaceMode
		switched bool
		refused  string
	}{
		"not asked":                    {node: on},
		"asked":                        {node: on, asked: "switched", switched: true},
		"default":                      {node: always, switched: true},
		"default, not wanted":          {node: always, asked: "uplink"},
		"off":                          {node: off, asked: "switched", refused: "it is off"},
		"no node":                      {asked: "switched", refused: "no switching"},
		"limited":                      {node: on, asked: "switched", more: limited, refused: "is limited"},
		"default, limited":             {node: always, more: limited},
		"node's network":               {node: on, asked: "switched", network: runtimeapi.NamespaceMode_NODE, refused: "no network of its own"},
		"none":                         {node: on, asked: "switched", more: map[string]string{api.AnnotationNetwork: api.NetworkNone}, refused: "no network of its own"},
		"internal network":             {node: on, asked: "switched", more: internal, refused: "internal"},
		"default, internal network":    {node: always, more: internal},
		"internal network and another": {node: on, asked: "switched", more: both, switched: true},
	} {
		t.Run(name, func(t *testing.T) {
			annotations := map[string]string{}
			for k, v := range c.more {
				annotations[k] = v
			}
			if c.asked != "" {
				annotations[api.AnnotationEgress] = c.asked
			}
			plan, err := NewPlan("id", &runtimeapi.PodSandboxConfig{
				Metadata: &runtimeapi.PodSandboxMetadata{Name: "p", Namespace: "n", Uid: "u"}, Annotations: annotations, Labels: map[string]string{api.LabelMadeBy: api.MadeByRun},
				Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{Network: c.network}}},
			}, Host{Egress: c.node})
			if err != nil {
				t.Fatal(err)
			}
			if plan.Resources("node").Switched != c.switched {
				t.Errorf("switched: %v", !c.switched)
			}
			if (plan.refused == nil) != (c.refused == "") || plan.refused != nil && !strings.Contains(plan.refused.Error(), c.refused) {
				t.Errorf("refused: %v, want %q", plan.refused, c.refused)
			}
		})
	}
}
