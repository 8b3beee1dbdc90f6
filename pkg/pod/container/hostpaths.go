package container

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/subpath"
)

// hostPath returns where the host's path of a mount is in the node, links followed. What
// the node does not show is attached for as long as the container is being created.
// What it may not have of the host may still be a path that it has itself.
func (b *Builder) hostPath(id, name string, m *runtimeapi.Mount) (string, error) {
	if b.HostTree == nil || !filepath.IsAbs(m.HostPath) {
		return filepath.EvalSymlinks(m.HostPath)
	}
	tree, hostErr := b.HostTree.Open(filepath.Clean(m.HostPath))
	if tree != nil {
		defer tree.Close()
		if m.Propagation == runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL {
			return subpath.AttachShared(b.SubPathDir+"-shared", m.HostPath, tree)
		}
		return subpath.Attach(b.subPathDir(id), name, tree)
	}
	own, err := filepath.EvalSymlinks(m.HostPath)
	if hostErr == nil {
		return own, err
	}
	switch hasOwn := b.HostTree.HasOwn(filepath.Clean(m.HostPath)); {
	case hasOwn && errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("%w; of the node's own: %w", hostErr, err)
	case err != nil || !hasOwn || !b.HostTree.HasOwn(own):
		return "", hostErr
	}
	b.Log.Log(context.Background(), b.once.Level("own files on "+m.HostPath),
		"a container's mount shows the node's own files, not the host's (said once, of others at level debug)", "container", id, "path", m.HostPath, "mounted_on", m.ContainerPath, "reason", hostErr)
	return own, nil
}

// hostFiles brings in what else of the host a container's configuration names, and
// returns the configuration to build from.
func (b *Builder) hostFiles(id string, cfg *runtimeapi.ContainerConfig) (*runtimeapi.ContainerConfig, error) {
	if b.HostTree == nil {
		return cfg, nil
	}
	for _, d := range cfg.Devices {
		if err := b.hostDevice(filepath.Clean(d.HostPath)); err != nil {
			return nil, err
		}
	}
	seccomp := cfg.GetLinux().GetSecurityContext().GetSeccomp()
	if seccomp.GetProfileType() != runtimeapi.SecurityProfile_Localhost || !filepath.IsAbs(seccomp.LocalhostRef) {
		return cfg, nil
	}
	path, err := b.hostPath(id, "seccomp", &runtimeapi.Mount{HostPath: seccomp.LocalhostRef})
	if err != nil {
		return nil, invalid("seccomp profile %s: %w", seccomp.LocalhostRef, err)
	}
	cfg = proto.CloneOf(cfg)
	cfg.Linux.SecurityContext.Seccomp.LocalhostRef = path
	return cfg, nil
}

// hostDevice attaches a device that the node does not show at its own place: the
// container's is bound from there, and again by an OCI runtime that restores it.
func (b *Builder) hostDevice(path string) error {
	if _, err := os.Lstat(path); err == nil || !filepath.IsAbs(path) {
		return nil
	}
	tree, err := b.HostTree.Open(path)
	if err != nil {
		return invalid("device %s: %w", path, err)
	}
	if tree == nil {
		return nil
	}
	defer tree.Close()
	if info, err := tree.Stat(); err != nil || info.Mode()&fs.ModeDevice == 0 {
		return invalid("device %s is not a device", path)
	}
	_, err = subpath.Attach(filepath.Dir(path), filepath.Base(path), tree)
	if errors.Is(err, fs.ErrExist) {
		return nil // another container was quicker
	}
	return err
}
