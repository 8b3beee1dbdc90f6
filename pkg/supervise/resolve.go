package supervise

import (
	"encoding/json"
	"fmt"
	"strings"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/api"
	"github.com/subpod/subpod/pkg/state"
	"github.com/subpod/subpod/pkg/workload"
)

// resolve returns the configuration of a container with its placeholders replaced by what
// the pod sandbox has now; nil for a container that a request has made.
func resolve(c *workload.Container, p state.Pod, volumes string) (*runtimeapi.ContainerConfig, error) {
	if len(c.Config) == 0 {
		return nil, nil
	}
	cfg := &runtimeapi.ContainerConfig{}
	if err := proto.Unmarshal(c.Config, cfg); err != nil {
		return nil, fmt.Errorf("decode the configuration of container %s: %w", c.Name, err)
	}
	ip := ""
	if ips := p.IPs(); len(ips) > 0 {
		ip = ips[0].String()
	}
	r := strings.NewReplacer(workload.PodIP, ip, workload.Volumes, volumes)
	for _, list := range [][]string{cfg.Command, cfg.Args} {
		for i := range list {
			list[i] = r.Replace(list[i])
		}
	}
	for _, e := range cfg.Envs {
		e.Value = []byte(r.Replace(string(e.Value)))
	}
	for _, m := range cfg.Mounts {
		m.HostPath = r.Replace(m.HostPath)
	}
	if text := cfg.Annotations[api.AnnotationSubPaths]; text != "" {
		var paths map[string]string
		if err := json.Unmarshal([]byte(text), &paths); err != nil {
			return nil, fmt.Errorf("decode the sub paths of container %s: %w", c.Name, err)
		}
		for target := range paths {
			paths[target] = r.Replace(paths[target])
		}
		out, err := json.Marshal(paths)
		if err != nil {
			return nil, err
		}
		cfg.Annotations[api.AnnotationSubPaths] = string(out)
	}
	return cfg, nil
}
