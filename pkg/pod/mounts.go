package pod

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/labels"
	"github.com/subpod/subpod/pkg/ocispec"
	"github.com/subpod/subpod/pkg/state"
	"github.com/subpod/subpod/pkg/subpath"
)

var (
	// ErrMountSource says that the host path of a mount cannot be used: most
	// often it is missing.
	ErrMountSource = errors.New("mount source cannot be used")
	// ErrImageVolume says that an image, or a path in it, cannot be mounted.
	ErrImageVolume = errors.New("image volume cannot be mounted")
)

// imageMounts lists the image volumes that resolveMounts will mount for the
// container; they are in the record before it does.
func imageMounts(c state.Container) []string {
	var out []string
	for i, m := range c.Config.V.Mounts {
		if m.GetImage().GetImage() != "" {
			out = append(out, fmt.Sprintf("%s-%d", c.ID, i))
		}
	}
	return out
}

// resolveMounts returns the container's mounts with every source an existing
// path of the node: links followed (proto: Mount.host_path), images mounted.
func (r *Runtime) resolveMounts(ctx context.Context, c state.Container) ([]*runtimeapi.Mount, error) {
	subPaths, err := containerSubPaths(c.Config.V)
	if err != nil {
		return nil, err
	}
	keys := c.Allocated.ImageMounts
	out := make([]*runtimeapi.Mount, 0, len(c.Config.V.Mounts))
	for i, m := range c.Config.V.Mounts {
		m = proto.CloneOf(m)
		if m.GetImage().GetImage() != "" {
			source, err := r.mountImage(ctx, keys[0], m)
			if err != nil {
				return nil, err
			}
			keys = keys[1:]
			m.HostPath, m.Image, m.ImageSubPath, m.Readonly = source, nil, "", true
		} else {
			source, err := filepath.EvalSymlinks(m.HostPath)
			if err != nil || !filepath.IsAbs(m.HostPath) {
				return nil, fmt.Errorf("%w: host path %q of the mount on %s: %w", ErrMountSource, m.HostPath, m.ContainerPath, errors.Join(err, absolute(m.HostPath)))
			}
			if sub := subPaths[m.ContainerPath]; sub != "" {
				source, err = subpath.Mount(r.subPathDir(c.ID), strconv.Itoa(i), source, sub)
			}
			if err != nil {
				return nil, fmt.Errorf("%w: mount on %s: %w", ErrMountSource, m.ContainerPath, err)
			}
			m.HostPath = source
		}
		out = append(out, m)
	}
	return out, nil
}

// subPathDir holds the bind mounts that a container's sub paths are mounted from,
// while the OCI runtime creates the container.
func (r *Runtime) subPathDir(id string) string { return filepath.Join(r.RunDir, "subpaths", id) }

// releaseSubPaths removes those bind mounts: the container has its own by then.
func (r *Runtime) releaseSubPaths(id string) {
	if err := subpath.Release(r.subPathDir(id)); err != nil {
		r.Log.Warn("the mounts of a container's sub paths could not be removed", "container", id, "error", err)
	}
}

// containerSubPaths returns the sub paths of a container's mounts, by container
// path (labels.SubPaths). ErrInvalid.
func containerSubPaths(cfg *runtimeapi.ContainerConfig) (map[string]string, error) {
	text := cfg.GetAnnotations()[labels.SubPaths]
	if text == "" {
		return nil, nil
	}
	var out map[string]string
	if err := json.Unmarshal([]byte(text), &out); err != nil {
		return nil, fmt.Errorf("%w: annotation %s: %w", ErrInvalid, labels.SubPaths, err)
	}
	for target := range out {
		mounts := func(m *runtimeapi.Mount) bool { return m.ContainerPath == target && m.GetImage().GetImage() == "" }
		if !slices.ContainsFunc(cfg.Mounts, mounts) {
			return nil, fmt.Errorf("%w: annotation %s: there is no mount of a host path on %s", ErrInvalid, labels.SubPaths, target)
		}
	}
	return out, nil
}

func absolute(path string) error {
	if filepath.IsAbs(path) {
		return nil
	}
	return errors.New("the path is not absolute")
}

func (r *Runtime) mountImage(ctx context.Context, key string, m *runtimeapi.Mount) (string, error) {
	if m.HostPath != "" {
		return "", fmt.Errorf("%w: the mount on %s has both a host path and an image", ErrInvalid, m.ContainerPath)
	}
	// The kubelet sends an ID, other clients any reference.
	image, err := r.Images.Image(ctx, m.Image.Image)
	if err != nil {
		return "", fmt.Errorf("%w on %s: %w", ErrImageVolume, m.ContainerPath, err)
	}
	root, err := r.Images.MountImage(ctx, image.ID, key)
	if err != nil {
		return "", fmt.Errorf("%w on %s: %w", ErrImageVolume, m.ContainerPath, err)
	}
	path, err := ocispec.ImageSubPath(root, m.ImageSubPath)
	if err != nil {
		return "", fmt.Errorf("%w on %s: %w", ErrImageVolume, m.ContainerPath, err)
	}
	return path, nil
}

// containerNamespaces says which namespaces the container joins.
func (r *Runtime) containerNamespaces(p state.Pod, cfg *runtimeapi.ContainerConfig) (ocispec.Namespaces, error) {
	pins := p.Allocated.Pins
	ns := ocispec.Namespaces{Net: pins.Net, IPC: pins.IPC, UTS: pins.UTS, User: pins.User}
	podNS := p.NamespaceOptions()
	if state.OnNode(podNS.GetNetwork()) {
		ns.Net = r.NodeNetNS
	}
	want := cfg.GetLinux().GetSecurityContext().GetNamespaceOptions()
	if err := sharedNamespaces(podNS, want); err != nil {
		return ns, fmt.Errorf("%w: container %q: %w", ErrInvalid, cfg.Metadata.Name, err)
	}
	switch want.GetPid() {
	case runtimeapi.NamespaceMode_POD:
		if want == nil && p.Allocated.Pins.PID == "" {
			break // nothing asked for, and the pod shares none
		}
		if p.Allocated.Pins.PID == "" {
			return ns, fmt.Errorf("%w: container %q asks for the pod's PID namespace, and the pod sandbox was not made with one", ErrInvalid, cfg.Metadata.Name)
		}
		ns.PID = p.Allocated.Pins.PID
	case runtimeapi.NamespaceMode_NODE:
		ns.PID = ocispec.PIDNode
	case runtimeapi.NamespaceMode_TARGET:
		target, err := r.State.Container(want.GetTargetId())
		if err != nil || target.PodID != p.ID {
			return ns, fmt.Errorf("%w: target container %q is not in the pod sandbox", ErrInvalid, want.GetTargetId())
		}
		if target.State() != runtimeapi.ContainerState_CONTAINER_RUNNING && target.State() != runtimeapi.ContainerState_CONTAINER_CREATED || target.Allocated.Runtime == nil {
			return ns, fmt.Errorf("%w: target container %s is not running", ErrWrongState, target.ID)
		}
		ns.PID = fmt.Sprintf("/proc/%d/ns/pid", target.Allocated.Runtime.Init.PID)
	}
	return ns, nil
}

// sharedNamespaces checks that a container asks for the network and IPC namespaces
// of its pod sandbox. POD is the zero value, so it may also mean that nothing was
// asked for.
func sharedNamespaces(pod, container *runtimeapi.NamespaceOption) error {
	for _, n := range []struct {
		what           string
		pod, container runtimeapi.NamespaceMode
	}{
		{"network", pod.GetNetwork(), container.GetNetwork()},
		{"ipc", pod.GetIpc(), container.GetIpc()},
	} {
		if n.container != n.pod && n.container != runtimeapi.NamespaceMode_POD {
			return fmt.Errorf("%s namespace mode %s, and its pod sandbox has %s: containers share what the pod sandbox has", n.what, n.container, n.pod)
		}
	}
	return nil
}
