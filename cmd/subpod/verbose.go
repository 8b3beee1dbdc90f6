package main

import (
	"context"
	"encoding/json"
	"fmt"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/client"
)

// verboseConfig is the part of a container's configuration that its verbose status
// contains.
type verboseConfig struct {
	TTY   bool `json:"tty"`
	Stdin bool `json:"stdin"`
}

func containerConfig(ctx context.Context, c *client.Client, id string) (verboseConfig, error) {
	var info struct{ Config verboseConfig }
	st, err := c.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id, Verbose: true})
	if err != nil {
		return info.Config, err
	}
	err = decodeInfo(st.Info, "container "+id, &info)
	return info.Config, err
}

// decodeInfo decodes the part of a verbose status that the CRI leaves to the runtime.
func decodeInfo(info map[string]string, of string, into any) error {
	if err := json.Unmarshal([]byte(info["info"]), into); err != nil {
		return fmt.Errorf("decode the status of %s: %w", of, err)
	}
	return nil
}
