package cri

import (
	"context"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/subpod/subpod/pkg/control"
)

// Load loads images from files: the CRI has no call for it.
func (s *Service) Load(ctx context.Context, req *control.LoadRequest) (*control.LoadResponse, error) {
	if req.Source == "" {
		return nil, status.Error(codes.InvalidArgument, "the request names no source")
	}
	images, err := s.Images.Load(ctx, req.Source)
	if err != nil {
		return nil, err
	}
	resp := &control.LoadResponse{}
	for _, image := range images {
		resp.Images = append(resp.Images, control.LoadedImage{ID: image.ID, Tags: image.RepoTags})
	}
	return resp, nil
}
