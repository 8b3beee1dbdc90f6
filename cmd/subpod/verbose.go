package main

import (
	"context"
	"encoding/json"
	"fmt"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/client"
)

// verboseConfig is what the verbose status of a container tells of its
// configuration.
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
	if err := json.Unmarshal([]byte(st.Info["info"]), &info); err != nil {
		return info.Config, fmt.Errorf("decode the status of container %s: %w", id, err)
	}
	return info.Config, nil
}
