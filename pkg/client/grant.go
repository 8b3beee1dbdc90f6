package client

import (
	"context"
	"path/filepath"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// CreateContainer is the CRI's, after Grant of the paths that the container's
// configuration names.
func (c *Client) CreateContainer(ctx context.Context, req *runtimeapi.CreateContainerRequest, opts ...grpc.CallOption) (*runtimeapi.CreateContainerResponse, error) {
	if err := c.GrantFor(req.Config); err != nil {
		return nil, err
	}
	return c.RuntimeServiceClient.CreateContainer(ctx, req, opts...)
}

// GrantFor calls Grant with the paths of the host that a container's configuration
// names: of mounts, devices and the seccomp profile.
func (c *Client) GrantFor(cfg *runtimeapi.ContainerConfig) error {
	if c.Grant == nil {
		return nil
	}
	paths := []string{cfg.GetLinux().GetSecurityContext().GetSeccomp().GetLocalhostRef()}
	for _, m := range cfg.GetMounts() {
		paths = append(paths, m.HostPath)
	}
	for _, d := range cfg.GetDevices() {
		paths = append(paths, d.HostPath)
	}
	var named []string
	for _, path := range paths {
		if filepath.IsAbs(path) {
			named = append(named, path)
		}
	}
	if len(named) == 0 {
		return nil
	}
	return c.Grant(named...)
}
