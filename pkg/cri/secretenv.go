package cri

import (
	"encoding/json"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/api"
)

// hidden is what a status shows for a value that comes from a secret.
const hidden = "*******"

// withoutSecrets returns a container's configuration and OCI specification (nil for none)
// as a status shows them: without the values of variables that come from secrets.
func withoutSecrets(cfg *runtimeapi.ContainerConfig, spec json.RawMessage) (*runtimeapi.ContainerConfig, json.RawMessage, error) {
	options, err := api.Options(cfg.GetAnnotations())
	if err != nil || len(options.SecretEnv) == 0 {
		return cfg, spec, nil // options that cannot be read name no secrets
	}
	cfg = proto.CloneOf(cfg)
	for _, e := range cfg.Envs {
		if slices.Contains(options.SecretEnv, e.Key) {
			e.Value = []byte(hidden)
		}
	}
	if spec == nil {
		return cfg, nil, nil
	}
	var whole, process map[string]json.RawMessage
	var env []string
	if err := json.Unmarshal(spec, &whole); err != nil {
		return nil, nil, err
	}
	if whole["process"] == nil {
		return cfg, spec, nil
	}
	if err := json.Unmarshal(whole["process"], &process); err != nil {
		return nil, nil, err
	}
	if process["env"] == nil {
		return cfg, spec, nil
	}
	if err := json.Unmarshal(process["env"], &env); err != nil {
		return nil, nil, err
	}
	for i, e := range env {
		if name, _, _ := strings.Cut(e, "="); slices.Contains(options.SecretEnv, name) {
			env[i] = name + "=" + hidden
		}
	}
	if process["env"], err = json.Marshal(env); err != nil {
		return nil, nil, err
	}
	if whole["process"], err = json.Marshal(process); err != nil {
		return nil, nil, err
	}
	spec, err = json.Marshal(whole)
	return cfg, spec, err
}
