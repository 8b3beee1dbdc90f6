package kube

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/subpod/subpod/pkg/api"
)

const serviceManifest = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web, tier: front}}
    spec:
      hostAliases: [{ip: 192.0.2.9, hostnames: [alias, other]}]
      containers:
      - {name: c, image: i, ports: [{name: http, containerPort: 8080}, {containerPort: 53, protocol: UDP}]}
---
apiVersion: v1
kind: Service
metadata: {name: direct}
spec: {selector: {app: web}, ports: [{port: 53, protocol: UDP}]}
---
apiVersion: v1
kind: Service
metadata: {name: mapped}
spec:
  type: NodePort
  selector: {app: web, tier: front}
  ports: [{port: 80, targetPort: http, nodePort: 30080}, {name: s, port: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: each}
spec: {clusterIP: None, selector: {app: web}, ports: [{port: 80, targetPort: http}]}
---
apiVersion: v1
kind: Service
metadata: {name: elsewhere, namespace: far}
spec: {selector: {app: web}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Pod
metadata: {name: alone, labels: {app: other}}
spec: {containers: [{name: c, image: i}]}
`

// TestServices: each pod that a service selects knows its names and ports; the host's
// lead to the first one.
func TestServices(t *testing.T) {
	set, err := Parse(Source{Text: []byte(serviceManifest)})
	if err != nil {
		t.Fatal(err)
	}
	for i, p := range set.Pods {
		cfg := p.Sandbox(Place{})
		text := cfg.Annotations[api.AnnotationNetworks]
		if p.Metadata.Name == "alone" {
			if text != "" || len(cfg.PortMappings) > 0 {
				t.Errorf("a pod of no service has %q", text)
			}
			continue
		}
		var got api.PodNetworks
		if err := json.Unmarshal([]byte(text), &got); err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, s := range got.Services {
			names = append(names, s.Names[0])
			if s.Names[0] == "mapped" {
				want := []api.PodServicePort{{Protocol: "tcp", Port: 80, TargetPort: 8080}, {Protocol: "tcp", Port: 8080, TargetPort: 8080}}
				if !slices.Equal(s.Ports, want) || s.Names[3] != "mapped.default.svc.cluster.local" {
					t.Errorf("%+v", s)
				}
			}
		}
		if want := []string{"mapped", "direct", "each", p.Metadata.Name + ".each"}; !slices.Equal(names, want) {
			t.Errorf("pod %s is a part of %q, want %q", p.Metadata.Name, names, want)
		}
		if len(got.Hosts) != 1 || got.Hosts[0].IP != "192.0.2.9" || !slices.Equal(got.Hosts[0].Names, []string{"alias", "other"}) {
			t.Errorf("hosts %+v", got.Hosts)
		}
		var ports []int32
		for _, m := range cfg.PortMappings {
			ports = append(ports, m.HostPort, m.ContainerPort)
		}
		if first := i == 0; first != (len(ports) == 4) || first && (ports[0] != 30080 || ports[1] != 8080 || ports[2] < firstNodePort || ports[2] >= firstNodePort+nodePortCount) {
			t.Errorf("pod %d has the ports %v of the host", i, ports)
		}
	}
	if lines := set.HostPorts(); len(lines) != 2 || lines[0] != "service mapped: port 80 is port 30080 of the host" {
		t.Errorf("%q", lines)
	}
	set.Attach([]api.PodNetwork{{Name: "back"}})
	if text := set.Pods[2].Sandbox(Place{}).Annotations[api.AnnotationNetworks]; !strings.Contains(text, `"back"`) {
		t.Errorf("network: %q", text)
	}
}

func TestBadServices(t *testing.T) {
	for spec, want := range map[string]string{
		"{type: ExternalName, externalName: example.org}":                  "ExternalName is not supported",
		"{type: Other, selector: {app: web}}":                              "spec.type",
		"{selector: {app: web}, loadBalancerSourceRanges: [192.0.2.0/24]}": "loadBalancerSourceRanges",
		"{ports: [{port: 80}]}":                                            "spec.selector is missing",
		"{selector: {app: other}, ports: [{port: 80, targetPort: http}]}":  `pod alone has no port named "http"`,
		"{selector: {app: web}, ports: [{port: 70000}]}":                   "spec.ports[0]",
		"{selector: {app: web}, ports: [{port: 80, protocol: ICMP}]}":      "spec.ports[0].protocol",
		"{selector: {app: web}, ports: [{port: 80, targetPort: 99999}]}":   "spec.ports[0]",
	} {
		_, err := Parse(Source{Text: []byte(serviceManifest + "---\napiVersion: v1\nkind: Service\nmetadata: {name: bad}\nspec: " + spec + "\n")})
		if !errors.Is(err, ErrManifest) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", spec, err, want)
		}
	}
}
