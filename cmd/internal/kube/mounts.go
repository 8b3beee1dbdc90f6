package kube

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/api"
	"github.com/subpod/subpod/pkg/subpath"
)

// mounts returns the mounts of a container and the annotation with their sub
// paths, which the server resolves: the content of a volume is written by
// containers, so no path in it may be looked up here. The volumes exist already
// (see Prepare).
func (p *Pod) mounts(c *Container, at Place, envs []*runtimeapi.KeyValue) ([]*runtimeapi.Mount, map[string]string, error) {
	var out []*runtimeapi.Mount
	subs := map[string]string{}
	for i := range c.VolumeMounts {
		vm := &c.VolumeMounts[i]
		m := &runtimeapi.Mount{ContainerPath: vm.MountPath, Readonly: vm.ReadOnly}
		var err error
		if m.Propagation, err = vm.propagation(); err != nil {
			return nil, nil, err
		}
		m.RecursiveReadOnly = vm.ReadOnly && vm.RecursiveReadOnly == "Enabled"
		sub, err := vm.subPath(envs)
		if err != nil {
			return nil, nil, err
		}
		for i := range p.Spec.Volumes {
			v := &p.Spec.Volumes[i]
			if v.Name != vm.Name {
				continue
			}
			if v.Image != nil {
				m.Image, m.ImageSubPath, m.Readonly = &runtimeapi.ImageSpec{Image: v.Image.Reference}, sub, true
				continue
			}
			if err := v.checkSubPath(at, sub); err != nil {
				return nil, nil, err
			}
			dir, readOnly := v.path(at)
			m.HostPath, m.Readonly = dir, m.Readonly || readOnly
			if sub != "" {
				subs[m.ContainerPath] = sub
			}
		}
		out = append(out, m)
	}
	if len(subs) == 0 {
		return out, nil, nil
	}
	text, err := json.Marshal(subs)
	return out, map[string]string{api.AnnotationSubPaths: string(text)}, err
}

func (m *VolumeMount) propagation() (runtimeapi.MountPropagation, error) {
	switch m.MountPropagation {
	case "", "None":
		return runtimeapi.MountPropagation_PROPAGATION_PRIVATE, nil
	case "HostToContainer":
		return runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER, nil
	case "Bidirectional":
		return runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL, nil
	}
	return 0, fmt.Errorf("%w: mountPropagation %q", ErrManifest, m.MountPropagation)
}

// subPath returns the path in the volume that is mounted, "" for all of it:
// subPath, or subPathExpr with the container's variables, all of which must be
// set.
func (m *VolumeMount) subPath(envs []*runtimeapi.KeyValue) (string, error) {
	sub := m.SubPath
	if m.SubPathExpr != "" {
		known := map[string]string{}
		for _, kv := range envs {
			known[kv.Key] = string(kv.Value)
		}
		for _, ref := range reference().FindAllString(m.SubPathExpr, -1) {
			if _, ok := known[ref[2:max(len(ref)-1, 2)]]; !ok && ref != "$$" {
				return "", fmt.Errorf("%w: subPathExpr %q: the container has no variable %s", ErrManifest, m.SubPathExpr, ref)
			}
		}
		sub = expand(m.SubPathExpr, known)
	}
	if err := subpath.Check(sub); err != nil {
		return "", fmt.Errorf("%w: subPath: %w", ErrManifest, err)
	}
	return sub, nil
}

// checkSubPath refuses a sub path that is not in a volume whose content is the
// manifest's own: there a missing one is a mistake. Containers cannot change
// these volumes.
func (v *Volume) checkSubPath(at Place, sub string) error {
	if sub == "" || v.EmptyDir != nil || v.HostPath != nil || v.PersistentVolumeClaim != nil {
		return nil
	}
	dir, _ := v.path(at)
	if _, err := os.Lstat(filepath.Join(dir, sub)); err != nil {
		return fmt.Errorf("%w: subPath %q is not in volume %s", ErrManifest, sub, v.Name)
	}
	return nil
}
