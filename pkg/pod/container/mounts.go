package container

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/errclass"
	"github.com/subpod/subpod/pkg/ocispec"
	"github.com/subpod/subpod/pkg/subpath"
)

var (
	// ErrMountSource says that the host path of a mount cannot be used: most
	// often it is missing.
	ErrMountSource = errclass.New(errdefs.ErrFailedPrecondition, "mount source cannot be used")
	// ErrImageVolume says that an image, or a path in it, cannot be mounted.
	ErrImageVolume = errors.New("image volume cannot be mounted")
)

// resolveMounts returns the container's mounts with every source an existing
// path of the node: links followed (proto: Mount.host_path), images mounted.
func (b *Builder) resolveMounts(ctx context.Context, plan Plan, id string) ([]*runtimeapi.Mount, error) {
	keys := plan.imageMounts
	out := make([]*runtimeapi.Mount, 0, len(plan.Config.Mounts))
	for i, m := range plan.Config.Mounts {
		m = proto.CloneOf(m)
		if m.GetImage().GetImage() != "" {
			source, err := b.mountImage(ctx, keys[0], m)
			if err != nil {
				return nil, err
			}
			keys = keys[1:]
			m.HostPath, m.Image, m.ImageSubPath, m.Readonly = source, nil, "", true
		} else {
			source, err := b.hostPath(id, "host"+strconv.Itoa(i), m)
			if err != nil || !filepath.IsAbs(m.HostPath) {
				return nil, fmt.Errorf("%w: host path %q of the mount on %s: %w", ErrMountSource, m.HostPath, m.ContainerPath, errors.Join(err, absolute(m.HostPath)))
			}
			if sub := plan.subPaths[m.ContainerPath]; sub != "" {
				if source, err = subpath.Mount(b.subPathDir(id), strconv.Itoa(i), source, sub); err != nil {
					return nil, fmt.Errorf("%w: mount on %s: %w", ErrMountSource, m.ContainerPath, err)
				}
			}
			m.HostPath = source
		}
		out = append(out, m)
	}
	return out, nil
}

// hostPath returns where the host's path of a mount is in the node, links followed. What
// the node does not show is attached for as long as the container is being created.
// What it may not have of the host may still be a path that it has itself.
func (b *Builder) hostPath(id, name string, m *runtimeapi.Mount) (string, error) {
	if b.OpenHost == nil || !filepath.IsAbs(m.HostPath) {
		return filepath.EvalSymlinks(m.HostPath)
	}
	tree, hostErr := b.OpenHost(filepath.Clean(m.HostPath))
	if tree != nil {
		defer tree.Close()
		if m.Propagation == runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL {
			return subpath.AttachShared(b.SubPathDir+"-shared", m.HostPath, tree)
		}
		return subpath.Attach(b.subPathDir(id), name, tree)
	}
	own, err := filepath.EvalSymlinks(m.HostPath)
	if err != nil && hostErr != nil {
		return "", hostErr
	}
	return own, err
}

// hostFiles brings in what else of the host a container's configuration names, and
// returns the configuration to build from.
func (b *Builder) hostFiles(id string, cfg *runtimeapi.ContainerConfig) (*runtimeapi.ContainerConfig, error) {
	if b.OpenHost == nil {
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
	tree, err := b.OpenHost(path)
	if err != nil {
		return invalid("device %s: %w", path, err)
	}
	if tree == nil {
		return nil
	}
	defer tree.Close()
	_, err = subpath.Attach(filepath.Dir(path), filepath.Base(path), tree)
	if errors.Is(err, fs.ErrExist) {
		return nil // another container was quicker
	}
	return err
}

// subPathDir holds the bind mounts that a container's sub paths are mounted from,
// while the OCI runtime creates the container.
func (b *Builder) subPathDir(id string) string { return filepath.Join(b.SubPathDir, id) }

// releaseSubPaths removes those bind mounts: the container has its own by then.
func (b *Builder) releaseSubPaths(id string) {
	if err := subpath.Release(b.subPathDir(id)); err != nil {
		b.Log.Warn("the mounts of a container's sub paths could not be removed; the next start of the server tries again", "container", id, "error", err)
	}
}

func absolute(path string) error {
	if filepath.IsAbs(path) {
		return nil
	}
	return errors.New("the path is not absolute")
}

func (b *Builder) mountImage(ctx context.Context, key string, m *runtimeapi.Mount) (string, error) {
	if m.HostPath != "" {
		return "", invalid("the mount on %s has both a host path and an image", m.ContainerPath)
	}
	// The kubelet sends an ID, other clients any reference.
	image, err := b.Images.Get(ctx, m.Image.Image)
	if err != nil {
		return "", fmt.Errorf("%w on %s: %w", ErrImageVolume, m.ContainerPath, err)
	}
	root, err := b.Rootfs.MountImage(ctx, image.ID, key)
	if err != nil {
		return "", fmt.Errorf("%w on %s: %w", ErrImageVolume, m.ContainerPath, err)
	}
	path, err := ocispec.ImageSubPath(root, m.ImageSubPath)
	if err != nil {
		return "", fmt.Errorf("%w on %s: %w", ErrImageVolume, m.ContainerPath, err)
	}
	return path, nil
}
