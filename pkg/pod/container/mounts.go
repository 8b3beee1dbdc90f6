package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/errclass"
	"github.com/subpod/subpod/pkg/ocispec"
	"github.com/subpod/subpod/pkg/state"
	"github.com/subpod/subpod/pkg/subpath"
	"github.com/subpod/subpod/storage"
)

var (
	// ErrMountSource says that the host path of a mount cannot be used: most
	// often it is missing.
	ErrMountSource = errclass.New(errdefs.ErrFailedPrecondition, "mount source cannot be used")
	// ErrLogDirectory says that the pod's directory for logs cannot be had of the host.
	ErrLogDirectory = errclass.New(errdefs.ErrFailedPrecondition, "the pod's log_directory cannot be used")
	// ErrImageVolume says that an image, or a path in it, cannot be mounted.
	ErrImageVolume = errors.New("image volume cannot be mounted")
)

// resolveMounts returns the container's mounts with every source an existing
// path of the node: links followed (proto: Mount.host_path), images mounted.
func (b *Builder) resolveMounts(ctx context.Context, plan Plan, id string) ([]*runtimeapi.Mount, error) {
	keys := plan.imageMounts
	out := make([]*runtimeapi.Mount, 0, len(plan.Config.Mounts))
	for i, m := range plan.Config.Mounts {
		i += plan.firstMount
		m = proto.CloneOf(m)
		if m.GetImage().GetImage() != "" {
			source, err := b.mountImage(ctx, plan, keys[0], m)
			if err != nil {
				return nil, err
			}
			keys = keys[1:]
			m.HostPath, m.Image.Image, m.ImageSubPath, m.Readonly = source, "", "", true
			m.UidMappings, m.GidMappings = nil, nil // the mount has them
		} else {
			source, err := b.hostPath(id, "host"+strconv.Itoa(i), m)
			if withoutModules(m, err) {
				source, err = b.noModules(id)
			} else if err != nil {
				var made bool
				if made, err = b.makeHostPath(id, plan.Config, m, err); made {
					source, err = b.hostPath(id, "host"+strconv.Itoa(i), m)
				}
			}
			if err != nil || !filepath.IsAbs(m.HostPath) {
				return nil, fmt.Errorf("%w: host path %q of the mount on %s: %w", ErrMountSource, m.HostPath, m.ContainerPath, errors.Join(err, absolute(m.HostPath)))
			}
			if sub := plan.subPaths[m.ContainerPath]; sub != "" {
				if source, err = subpath.Mount(b.subPathDir(id), strconv.Itoa(i), source, sub); err != nil {
					return nil, fmt.Errorf("%w: mount on %s: %w", ErrMountSource, m.ContainerPath, err)
				}
			}
			if plan.nested && m.Propagation == runtimeapi.MountPropagation_PROPAGATION_PRIVATE && plan.subPaths[m.ContainerPath] == "" {
				// Its root cannot pass directories above the source that only this user can.
				if source, err = cloneMount(b.subPathDir(id), "own"+strconv.Itoa(i), source); err != nil {
					return nil, fmt.Errorf("%w: mount on %s: %w", ErrMountSource, m.ContainerPath, err)
				}
			}
			m.HostPath = source
		}
		out = append(out, m)
	}
	return out, nil
}

// cloneMount mounts source, with what is mounted below it, where all users of the node can
// reach it, until the container is created.
func cloneMount(dir, name, source string) (string, error) {
	tree, err := unix.OpenTree(unix.AT_FDCWD, source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return "", fmt.Errorf("clone the mount of %s: %w", source, err)
	}
	file := os.NewFile(uintptr(tree), source)
	defer file.Close()
	return subpath.Attach(dir, name, file)
}

// subPathDir holds the bind mounts that sub paths and volumes of a container are
// mounted from, while the OCI runtime creates the container.
func (b *Builder) subPathDir(id string) string { return filepath.Join(b.SubPathDir, id) }

// recordSources keeps in c what those of mounts show whose source is one of these, and
// the IDs of images; imageVolumes does the same for volumes of the image.
func (b *Builder) recordSources(plan Plan, c *state.Container, mounts []*runtimeapi.Mount) {
	dir := b.subPathDir(c.ID) + "/"
	for i, asked := range plan.Config.Mounts {
		if strings.HasPrefix(mounts[i].HostPath, dir) {
			recordSource(c, asked.ContainerPath, filepath.Join(asked.HostPath, plan.subPaths[asked.ContainerPath]))
		}
		if id := mounts[i].GetImage().GetImageRef(); asked.GetImage().GetImage() != "" && id != "" {
			if c.Allocated.MountImages == nil {
				c.Allocated.MountImages = map[string]string{}
			}
			c.Allocated.MountImages[asked.ContainerPath] = id
		}
	}
}

func recordSource(c *state.Container, containerPath, source string) {
	if c.Allocated.MountSources == nil {
		c.Allocated.MountSources = map[string]string{}
	}
	c.Allocated.MountSources[filepath.Clean(containerPath)] = source
}

// releaseSources removes those bind mounts: the container has its own by then.
func (b *Builder) releaseSources(id string) {
	if err := subpath.Release(b.subPathDir(id)); err != nil {
		b.Log.Warn("the mounts of a container's sub paths and volumes could not be removed; the next start of the server tries again", "container", id, "error", err)
	}
}

func absolute(path string) error {
	if filepath.IsAbs(path) {
		return nil
	}
	return errors.New("the path is not absolute")
}

// mountImage mounts the image of an image volume and returns the path of what m mounts. It
// sets the image's ID in m.
// ID mappings of m are those of its files: the kernel makes no ID-mapped mount of an
// overlay for an ordinary user, so the image is mounted with its IDs changed.
func (b *Builder) mountImage(ctx context.Context, plan Plan, key string, m *runtimeapi.Mount) (string, error) {
	if m.HostPath != "" {
		return "", invalid("the mount on %s has both a host path and an image", m.ContainerPath)
	}
	spec := storage.RootfsSpec{ID: key, UIDMap: idMaps(m.UidMappings), GIDMap: idMaps(m.GidMappings)}
	if len(spec.UIDMap) > 0 || len(spec.GIDMap) > 0 {
		if !plan.nested {
			return "", invalid("mount on %s: ID mappings need a pod with a user namespace of its own", m.ContainerPath)
		}
		if len(spec.UIDMap) == 0 || len(spec.GIDMap) == 0 {
			return "", invalid("mount on %s: ID mappings for users and for groups must come together", m.ContainerPath)
		}
	}
	// The kubelet sends an ID, other clients any reference.
	image, err := b.Images.Get(ctx, m.Image.Image)
	if err != nil {
		return "", fmt.Errorf("%w on %s: %w", ErrImageVolume, m.ContainerPath, err)
	}
	spec.ImageID, m.Image.ImageRef = image.ID, image.ID
	root, err := b.Rootfs.MountImage(ctx, spec)
	if err != nil {
		return "", fmt.Errorf("%w on %s: %w", ErrImageVolume, m.ContainerPath, err)
	}
	path, err := ocispec.ImageSubPath(root, m.ImageSubPath)
	if err != nil {
		return "", fmt.Errorf("%w on %s: %w", ErrImageVolume, m.ContainerPath, err)
	}
	return path, nil
}
