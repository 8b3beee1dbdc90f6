package client

import (
	"path/filepath"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

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
