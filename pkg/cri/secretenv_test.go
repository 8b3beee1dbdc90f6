package cri

import (
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/api"
)

// TestSecretsInStatus: the verbose status shows no value that comes from a secret, and
// leaves the record as it is.
func TestSecretsInStatus(t *testing.T) {
	c := containerRecord("c", "p", isRunning, nil)
	c.Config.V.Annotations = map[string]string{}
	if err := api.SetOptions(c.Config.V.Annotations, &api.ContainerOptions{SecretEnv: []string{"TOKEN"}}); err != nil {
		t.Fatal(err)
	}
	c.Config.V.Envs = []*runtimeapi.KeyValue{{Key: "TOKEN", Value: []byte("hunter2")}, {Key: "MODE", Value: []byte("fast")}}
	info, err := containerInfo(c, []byte(`{"ociVersion":"1.0.2","process":{"cwd":"/","env":["TOKEN=hunter2","MODE=fast"]}}`), nil, false)
	if err != nil {
		t.Fatal(err)
	}
	text := info["info"]
	if strings.Contains(text, "hunter2") || strings.Count(text, hidden) != 2 {
		t.Errorf("the status has the secret: %s", text)
	}
	for _, want := range []string{`"MODE=fast"`, `"cwd":"/"`, `"ociVersion":"1.0.2"`} {
		if !strings.Contains(text, want) {
			t.Errorf("the status lacks %s: %s", want, text)
		}
	}
	if got := string(c.Config.V.Envs[0].Value); got != "hunter2" {
		t.Errorf("the record has %q now", got)
	}
}
