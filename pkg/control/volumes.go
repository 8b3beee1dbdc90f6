package control

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"

	"github.com/subpod/subpod/pkg/api"
	"github.com/subpod/subpod/pkg/state"
	"github.com/subpod/subpod/pkg/volumes"
)

// volumeService serves the calls for volumes.
type volumeService struct {
	volumes *volumes.Store
	state   *state.Store
}

// CreateVolume makes a volume.
func (s *volumeService) CreateVolume(_ context.Context, req *api.VolumeRequest) (*api.Volume, error) {
	v, err := s.volumes.Create(req.Name, req.Labels)
	if err != nil {
		return nil, err
	}
	out := toVolume(v, nil)
	return &out, nil
}

// RemoveVolume removes a volume that no container has.
func (s *volumeService) RemoveVolume(ctx context.Context, req *api.VolumeRequest) (*api.VolumeRemoved, error) {
	v, err := s.volumes.Get(req.Name)
	if errors.Is(err, volumes.ErrNotFound) && req.Force {
		return &api.VolumeRemoved{}, nil
	}
	if err != nil {
		return nil, err
	}
	return &api.VolumeRemoved{Removed: true}, onceLeft(ctx, s.state, func() error {
		if users := s.volumeUsers()[v.Path]; len(users) > 0 {
			return fmt.Errorf("%w: volume %s is used by the containers %s; remove them first, or use -f", errdefs.ErrFailedPrecondition, v.Name, strings.Join(users, ", "))
		}
		return s.volumes.Remove(v.Name)
	})
}

// Volumes lists all volumes.
func (s *volumeService) Volumes(context.Context, *api.Empty) (*api.VolumesResponse, error) {
	list, err := s.volumes.List()
	users := s.volumeUsers()
	out := make([]api.Volume, 0, len(list))
	for _, v := range list {
		out = append(out, toVolume(v, users[v.Path]))
	}
	return &api.VolumesResponse{Volumes: out}, err
}

// volumeUsers returns the IDs of containers by the host paths that they mount.
func (s *volumeService) volumeUsers() map[string][]string {
	users := map[string][]string{}
	for _, c := range s.state.Containers() {
		for _, m := range c.Config.V.GetMounts() {
			users[m.HostPath] = append(users[m.HostPath], c.ID)
		}
	}
	return users
}

func toVolume(v volumes.Volume, users []string) api.Volume {
	if users == nil {
		users = []string{}
	}
	return api.Volume{Name: v.Name, Path: v.Path, Labels: v.Labels, Created: v.Created, Containers: users}
}

// ExportVolume sends the content of a volume as a tar stream.
func (s *volumeService) ExportVolume(ctx context.Context, req *api.VolumeRequest, send func(*api.Chunk) error) error {
	w := bufio.NewWriterSize(chunks(send), chunkSize)
	if err := s.volumes.Export(ctx, req.Name, w); err != nil {
		return err
	}
	return w.Flush()
}

// ImportVolume adds the content of a tar stream to a volume.
func (s *volumeService) ImportVolume(ctx context.Context, receive func() (*api.ImportChunk, error)) (*api.Empty, error) {
	first, err := receive()
	if err != nil {
		return nil, err
	}
	r := readChunks(first, receive, func(c *api.ImportChunk) []byte { return c.Data })
	return &api.Empty{}, s.volumes.Import(ctx, first.Name, r)
}
