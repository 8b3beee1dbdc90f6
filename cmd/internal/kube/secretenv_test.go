package kube

import (
	"slices"
	"testing"

	"github.com/subpod/subpod/pkg/api"
)

// TestSecretVariables: values that come from secrets are not shown, nor those that have one
// in them.
func TestSecretVariables(t *testing.T) {
	set, err := Parse(Source{Text: []byte(`
apiVersion: v1
kind: Secret
metadata: {name: s}
stringData: {PASSWORD: p}
---
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  containers:
  - name: c
    image: i
    envFrom: [{prefix: DB_, secretRef: {name: s}}]
    env:
    - {name: EARLY, value: "$(TOKEN)"}
    - {name: TOKEN, valueFrom: {secretKeyRef: {name: s, key: PASSWORD}}}
    - {name: URL, value: "http://user:$(DB_PASSWORD)@host"}
    - {name: AGAIN, value: "$(URL)/path"}
    - {name: PLAIN, value: TOKEN}
`)})
	if err != nil {
		t.Fatal(err)
	}
	p := set.Pods[0]
	cfg, err := p.Container(&p.Spec.Containers[0], set, Place{}, 0, "")
	if err != nil {
		t.Fatal(err)
	}
	options, err := api.Options(cfg.Annotations)
	if want := []string{"DB_PASSWORD", "TOKEN", "URL", "AGAIN"}; err != nil || !slices.Equal(options.SecretEnv, want) {
		t.Errorf("%v, %v, want %v", options, err, want)
	}
}
