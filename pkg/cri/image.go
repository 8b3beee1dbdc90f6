package cri

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/storage"
)

// imageService serves the calls for images.
type imageService struct {
	runtimeapi.UnsafeImageServiceServer
	images *storage.Images
	rootfs *storage.Rootfs
}

// ListImages returns the images that match the filter.
func (s *imageService) ListImages(ctx context.Context, req *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error) {
	images, err := s.listImages(ctx, req.Filter)
	return &runtimeapi.ListImagesResponse{Images: images}, err
}

// StreamImages is ListImages in pieces (KEP-5825).
func (s *imageService) StreamImages(req *runtimeapi.StreamImagesRequest, out grpc.ServerStreamingServer[runtimeapi.StreamImagesResponse]) error {
	images, err := s.listImages(out.Context(), req.Filter)
	if err != nil {
		return err
	}
	return sendChunks(images, func(chunk []*runtimeapi.Image) error {
		return out.Send(&runtimeapi.StreamImagesResponse{Images: chunk})
	})
}

func (s *imageService) listImages(ctx context.Context, f *runtimeapi.ImageFilter) ([]*runtimeapi.Image, error) {
	var images []storage.Image
	if ref := f.GetImage().GetImage(); ref != "" {
		image, err := s.images.Get(ctx, ref)
		if errors.Is(err, storage.ErrImageNotFound) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		images = append(images, image)
	} else {
		var err error
		if images, err = s.images.List(ctx); err != nil {
			return nil, err
		}
	}
	out := make([]*runtimeapi.Image, len(images))
	for i, image := range images {
		out[i] = criImage(image)
	}
	return out, nil
}

// ImageStatus returns an image; one that is not there is no error.
func (s *imageService) ImageStatus(ctx context.Context, req *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error) {
	ref := req.GetImage().GetImage()
	if ref == "" {
		return nil, status.Error(codes.InvalidArgument, "the request names no image")
	}
	image, err := s.images.Get(ctx, ref)
	if errors.Is(err, storage.ErrImageNotFound) {
		return &runtimeapi.ImageStatusResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	resp := &runtimeapi.ImageStatusResponse{Image: criImage(image)}
	if req.Verbose {
		text, err := json.Marshal(map[string]any{
			"id": image.ID, "digest": image.Digest, "os": image.OS, "architecture": image.Architecture, "variant": image.Variant,
			"created": image.Created, "labels": image.Labels, "imageSpec": map[string]any{"config": image.Config},
			"history": image.History, "layers": image.Layers, "author": image.Author,
		})
		if err != nil {
			return nil, fmt.Errorf("encode the verbose status: %w", err)
		}
		resp.Info = map[string]string{"info": string(text)}
	}
	return resp, nil
}

// PullImage pulls an image with the credentials of the request, or else with
// those of auth.json.
func (s *imageService) PullImage(ctx context.Context, req *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error) {
	ref := req.GetImage().GetImage()
	if ref == "" {
		return nil, status.Error(codes.InvalidArgument, "the request names no image")
	}
	pull := storage.PullRequest{Ref: ref}
	if a := req.Auth; a != nil {
		pull.Auth = &storage.Auth{
			Username: a.Username, Password: a.Password, Auth: a.Auth, ServerAddress: a.ServerAddress,
			IdentityToken: a.IdentityToken, RegistryToken: a.RegistryToken,
		}
	}
	image, err := s.images.Pull(ctx, pull)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.PullImageResponse{ImageRef: criImageID(image)}, nil
}

// RemoveImage removes an image with all its names; one that is not there is no
// error.
func (s *imageService) RemoveImage(ctx context.Context, req *runtimeapi.RemoveImageRequest) (*runtimeapi.RemoveImageResponse, error) {
	ref := req.GetImage().GetImage()
	if ref == "" {
		return nil, status.Error(codes.InvalidArgument, "the request names no image")
	}
	if err := s.images.Remove(ctx, ref); err != nil {
		return nil, err
	}
	return &runtimeapi.RemoveImageResponse{}, nil
}

// ImageFsInfo returns what images and containers use of their file systems.
func (s *imageService) ImageFsInfo(ctx context.Context, _ *runtimeapi.ImageFsInfoRequest) (*runtimeapi.ImageFsInfoResponse, error) {
	info, err := s.images.FSInfo(ctx)
	if err != nil {
		return nil, err
	}
	now := time.Now().UnixNano()
	usage := func(mountpoint string, bytes, inodes uint64) *runtimeapi.FilesystemUsage {
		return &runtimeapi.FilesystemUsage{
			Timestamp:  now,
			FsId:       &runtimeapi.FilesystemIdentifier{Mountpoint: mountpoint},
			UsedBytes:  &runtimeapi.UInt64Value{Value: bytes},
			InodesUsed: &runtimeapi.UInt64Value{Value: inodes},
		}
	}
	return &runtimeapi.ImageFsInfoResponse{
		ImageFilesystems:     []*runtimeapi.FilesystemUsage{usage(info.Mountpoint, info.UsedBytes, info.InodesUsed)},
		ContainerFilesystems: []*runtimeapi.FilesystemUsage{usage(info.Mountpoint, info.Containers.Bytes, info.Containers.Inodes)},
	}, nil
}

// criImageID is the ID of an image everywhere in the CRI (proto:
// PullImageResponse.image_ref).
func criImageID(i storage.Image) string { return i.ID }

func criImage(i storage.Image) *runtimeapi.Image {
	uid, username := imageUser(i.User)
	return &runtimeapi.Image{
		Id:          criImageID(i),
		RepoTags:    i.RepoTags,
		RepoDigests: i.RepoDigests,
		Size:        max(i.Size, 1), // proto: must be > 0
		Uid:         uid,
		Username:    username,
		Spec:        &runtimeapi.ImageSpec{Image: criImageID(i), Annotations: map[string]string{}},
		Pinned:      i.Pinned,
	}
}

// imageUser splits the USER of an image: a number is a UID, else it is a name;
// the group is not part of either (proto: Image.uid).
func imageUser(user string) (*runtimeapi.Int64Value, string) {
	user, _, _ = strings.Cut(user, ":")
	if user == "" {
		return nil, ""
	}
	if uid, err := strconv.ParseInt(user, 10, 64); err == nil {
		return &runtimeapi.Int64Value{Value: uid}, ""
	}
	return nil, strings.ToValidUTF8(user[:min(len(user), maxUsername)], "")
}

// maxUsername is how much of a name is shown, in bytes. Images of an earlier server, and
// of stores that are not ours, may have more, and all images share one message.
const maxUsername = 4 << 10
