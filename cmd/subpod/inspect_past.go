package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/subpod/subpod/pkg/api"
	"github.com/subpod/subpod/pkg/client"
)

// pastConfig fills in what an ended container had of its image and its configuration. An
// image that is gone is left out.
func pastConfig(ctx context.Context, c *client.Client, to *inspectedConfig, imageID string, own moreFacts, options *api.ContainerOptions) error {
	var image imageConfig
	info, err := imageInfo(ctx, c, imageID)
	if err != nil && !errors.Is(err, client.ErrNotFound) {
		return err
	}
	if err == nil {
		if err := json.Unmarshal(info.ImageSpec.Config, &image); err != nil {
			return fmt.Errorf("decode the configuration of image %s: %w", imageID, err)
		}
	}
	to.WorkingDir = cmp.Or(own.Config.Dir, image.WorkingDir, "/")
	own.pastEnv(to, image.Env, options)
	return nil
}

// pastEnv sets the variables of an ended container: the image's, then those that override
// them.
func (own moreFacts) pastEnv(to *inspectedConfig, image []string, options *api.ContainerOptions) {
	to.Env = []string{}
	at := map[string]int{}
	set := func(name, value string) {
		if i, ok := at[name]; ok {
			to.Env[i] = name + "=" + value
			return
		}
		at[name] = len(to.Env)
		to.Env = append(to.Env, name+"="+value)
	}
	for _, v := range image {
		if name, value, ok := strings.Cut(v, "="); ok && !options.UnsetAll && !slices.Contains(options.UnsetEnv, name) {
			set(name, value)
		}
	}
	for _, e := range own.Config.Envs {
		set(e.Key, string(e.Value))
	}
}
