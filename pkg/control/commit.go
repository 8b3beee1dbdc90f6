package control

import (
	"context"
	"maps"
	"slices"
	"strings"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/subpod/subpod/pkg/api"
	"github.com/subpod/subpod/pkg/state"
	"github.com/subpod/subpod/storage"
)

// commitService serves the calls for what containers have changed.
type commitService struct {
	images *storage.Images
	rootfs *storage.Rootfs
	state  *state.Store
}

// Changes lists what a container has changed of its image.
func (s *commitService) Changes(ctx context.Context, req *api.ChangesRequest) (*api.ChangesResponse, error) {
	c, err := s.state.FindContainer(req.ContainerID)
	if err != nil {
		return nil, err
	}
	list, err := s.rootfs.Changes(ctx, c.ID)
	if err != nil {
		return nil, err
	}
	resp := &api.ChangesResponse{Changes: make([]api.Change, 0, len(list))}
	for _, x := range list {
		resp.Changes = append(resp.Changes, api.Change(x))
	}
	return resp, nil
}

// Commit makes an image of a container.
func (s *commitService) Commit(ctx context.Context, req *api.CommitRequest) (*api.CommitResponse, error) {
	c, err := s.state.FindContainer(req.ContainerID)
	if err != nil {
		return nil, err
	}
	base, err := s.images.Get(ctx, c.Allocated.ImageID)
	if err != nil {
		return nil, err
	}
	image, err := storage.Commit(ctx, s.images, s.rootfs, storage.CommitSpec{
		Rootfs: c.ID, Name: req.Name, Author: req.Author, Message: req.Message, Config: changed(base.Config, req.Config),
	})
	return &api.CommitResponse{ID: image.ID}, err
}

// changed returns the configuration of an image with changes.
func changed(c v1.ImageConfig, by api.ImageChanges) v1.ImageConfig {
	if by.Entrypoint != nil {
		c.Entrypoint, c.Cmd = by.Entrypoint, nil
	}
	if by.Cmd != nil {
		c.Cmd = by.Cmd
	}
	for _, v := range by.Env {
		name, _, _ := strings.Cut(v, "=")
		c.Env = slices.DeleteFunc(slices.Clone(c.Env), func(old string) bool { return strings.HasPrefix(old, name+"=") })
		c.Env = append(c.Env, v)
	}
	c.Labels = merged(c.Labels, by.Labels)
	c.ExposedPorts = added(c.ExposedPorts, by.Ports)
	c.Volumes = added(c.Volumes, by.Volumes)
	for _, f := range []struct {
		to   *string
		from *string
	}{{&c.User, by.User}, {&c.WorkingDir, by.WorkingDir}, {&c.StopSignal, by.StopSignal}} {
		if f.from != nil {
			*f.to = *f.from
		}
	}
	return c
}

func merged(a, b map[string]string) map[string]string {
	if len(b) == 0 {
		return a
	}
	out := maps.Clone(b)
	for k, v := range a {
		if _, ok := out[k]; !ok {
			out[k] = v
		}
	}
	return out
}

func added(set map[string]struct{}, list []string) map[string]struct{} {
	if len(list) == 0 {
		return set
	}
	out := map[string]struct{}{}
	maps.Copy(out, set)
	for _, v := range list {
		out[v] = struct{}{}
	}
	return out
}
