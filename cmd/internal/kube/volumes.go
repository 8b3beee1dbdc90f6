package kube

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// path returns the path of a volume on the host, and whether it is read-only.
func (v *Volume) path(at Place) (dir string, readOnly bool) {
	switch {
	case v.inMemory():
		return filepath.Join(at.Tmpfs, v.Name), false
	case v.EmptyDir != nil:
		return filepath.Join(at.Disk, "volumes", v.Name), false
	case v.HostPath != nil:
		return v.HostPath.Path, false
	case v.PersistentVolumeClaim != nil:
		return filepath.Join(at.Volumes, v.PersistentVolumeClaim.ClaimName), v.PersistentVolumeClaim.ReadOnly
	}
	return filepath.Join(at.Memory, "volumes", v.Name), true // configMap, secret, downwardAPI, projected
}

// inMemory reports whether the server makes the volume: a tmpfs with a bound.
func (v *Volume) inMemory() bool { return v.EmptyDir != nil && v.EmptyDir.Medium == "Memory" }

// memoryVolumes returns the sizes of the volumes in memory (api.AnnotationMemoryVolumes).
func (p *Pod) memoryVolumes() map[string]uint64 {
	sizes := map[string]uint64{}
	for i := range p.Spec.Volumes {
		if v := &p.Spec.Volumes[i]; v.inMemory() {
			sizes[v.Name] = 0
			if limit := v.EmptyDir.SizeLimit; limit != nil {
				sizes[v.Name] = uint64(math.Ceil(float64(*limit)))
			}
		}
	}
	return sizes
}

// Prepare creates the volumes of the pod. Idempotent. The files below at.Disk and
// at.Memory belong to the pod and can be removed with it; named volumes are kept.
func (p *Pod) Prepare(s *Set, at Place) error {
	s = s.in(p.Metadata.Namespace)
	for i := range p.Spec.Volumes {
		v := &p.Spec.Volumes[i]
		if err := p.prepare(v, s, at); err != nil {
			return fmt.Errorf("pod %s: volume %s: %w", p.Metadata.Name, v.Name, err)
		}
	}
	return nil
}

func (p *Pod) prepare(v *Volume, s *Set, at Place) error {
	dir, _ := v.path(at)
	switch {
	case v.Image != nil, v.inMemory():
		return nil
	case v.HostPath != nil:
		return checkHostPath(v.HostPath.Path, v.HostPath.Type)
	case v.EmptyDir != nil:
		return makeOpen(dir)
	case v.PersistentVolumeClaim != nil:
		_, err := MakeVolume(at.Volumes, v.PersistentVolumeClaim.ClaimName)
		return err
	case v.ConfigMap != nil:
		return writeFiles(dir, s.ConfigMaps[v.ConfigMap.Name].content(), v.ConfigMap.Items, v.ConfigMap.DefaultMode, v.ConfigMap.Optional)
	case v.Secret != nil:
		return writeFiles(dir, s.Secrets[v.Secret.SecretName].content(), v.Secret.Items, v.Secret.DefaultMode, v.Secret.Optional)
	case v.DownwardAPI != nil:
		return p.writeFields(dir, v.DownwardAPI.Items, v.DownwardAPI.DefaultMode, at)
	case v.Projected != nil:
		return p.project(dir, v.Projected.Sources, v.Projected.DefaultMode, s, at)
	}
	return nil
}

// ClaimNames returns the names of the volumes that the claims and the pods of the set have.
func (s *Set) ClaimNames() []string {
	names := map[string]bool{}
	for key := range s.Claims {
		_, name, _ := strings.Cut(key, "/")
		names[name] = true
	}
	for _, p := range s.Pods {
		for _, v := range p.Spec.Volumes {
			if c := v.PersistentVolumeClaim; c != nil {
				names[c.ClaimName] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(names))
}

// MakeVolume creates a named volume, and reports whether it was not there before. One that
// exists keeps the owner and mode that its users have set.
func MakeVolume(volumes, name string) (made bool, err error) {
	dir := filepath.Join(volumes, name)
	if _, err := os.Stat(dir); err == nil {
		return false, nil
	}
	return true, makeOpen(dir)
}

// makeOpen creates a directory that is writable for all users in containers, as the
// kubelet does. Only the user of the daemon can list the directories above it.
func makeOpen(dir string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o711); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o777); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	err := os.Chmod(dir, 0o777)
	if errors.Is(err, os.ErrPermission) {
		return nil // owned by a user of a container
	}
	return err
}

// checkHostPath enforces the rules of HostPathType.
func checkHostPath(path, kind string) error {
	st, err := os.Stat(path)
	missing := errors.Is(err, os.ErrNotExist)
	if err != nil && !missing {
		return err
	}
	switch kind {
	case "":
		return nil
	case "DirectoryOrCreate":
		if missing {
			return os.MkdirAll(path, 0o755)
		}
		if !st.IsDir() {
			return fmt.Errorf("%s is not a directory", path)
		}
	case "FileOrCreate":
		if missing {
			f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o644)
			if err != nil {
				return err
			}
			return f.Close()
		}
		if !st.Mode().IsRegular() {
			return fmt.Errorf("%s is not a file", path)
		}
	case "Directory":
		if missing || !st.IsDir() {
			return fmt.Errorf("%s is not a directory", path)
		}
	case "File":
		if missing || !st.Mode().IsRegular() {
			return fmt.Errorf("%s is not a file", path)
		}
	case "Socket":
		if missing || st.Mode()&os.ModeSocket == 0 {
			return fmt.Errorf("%s is not a socket", path)
		}
	case "CharDevice", "BlockDevice":
		if missing || st.Mode()&os.ModeDevice == 0 {
			return fmt.Errorf("%s is not a device", path)
		}
	default:
		return fmt.Errorf("%w: hostPath.type %q", ErrManifest, kind)
	}
	return nil
}

// project fills a directory from several sources; later ones take precedence.
func (p *Pod) project(dir string, sources []Projection, mode *int32, s *Set, at Place) error {
	for _, src := range sources {
		var err error
		switch {
		case src.ConfigMap != nil:
			err = writeFiles(dir, s.ConfigMaps[src.ConfigMap.Name].content(), src.ConfigMap.Items, mode, src.ConfigMap.Optional)
		case src.Secret != nil:
			err = writeFiles(dir, s.Secrets[src.Secret.Name].content(), src.Secret.Items, mode, src.Secret.Optional)
		case src.DownwardAPI != nil:
			err = p.writeFields(dir, src.DownwardAPI.Items, mode, at)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// writeFields writes fields of the pod to files.
func (p *Pod) writeFields(dir string, files []DownwardFile, mode *int32, at Place) error {
	data := map[string][]byte{}
	items := []KeyToPath{}
	for _, f := range files {
		value, err := p.fileValue(&f, at.UID)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrManifest, err)
		}
		data[f.Path] = []byte(value)
		items = append(items, KeyToPath{Key: f.Path, Path: f.Path, Mode: f.Mode})
	}
	return writeFiles(dir, data, items, mode, false)
}

// fileValue returns the content of a file of a downwardAPI volume.
func (p *Pod) fileValue(f *DownwardFile, uid string) (string, error) {
	if f.FieldRef != nil {
		return p.fileField(f.FieldRef.FieldPath, uid)
	}
	for _, list := range [][]Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range list {
			if list[i].Name == f.ResourceFieldRef.ContainerName {
				return f.ResourceFieldRef.value(&list[i])
			}
		}
	}
	return "", fmt.Errorf("resourceFieldRef: the pod has no container %q", f.ResourceFieldRef.ContainerName)
}

// fileField returns the value of a fieldRef in a volume. Only metadata is supported;
// all labels and all annotations have one line each.
func (p *Pod) fileField(path, uid string) (string, error) {
	lines := func(m map[string]string) string {
		var out []string
		for _, k := range slices.Sorted(maps.Keys(m)) {
			out = append(out, fmt.Sprintf("%s=%q", k, m[k]))
		}
		return strings.Join(out, "\n")
	}
	switch {
	case path == "metadata.labels":
		return lines(p.Metadata.Labels), nil
	case path == "metadata.annotations":
		return lines(p.Metadata.Annotations), nil
	case strings.HasPrefix(path, "metadata."):
		return p.field(path, uid, "")
	}
	return "", fmt.Errorf("fieldRef %q is not supported in a volume", path)
}

// writeFiles fills a directory with the keys of a configMap or secret.
func writeFiles(dir string, data map[string][]byte, items []KeyToPath, mode *int32, optional bool) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if items == nil {
		for k := range data {
			items = append(items, KeyToPath{Key: k, Path: k})
		}
	}
	for _, item := range items {
		content, ok := data[item.Key]
		switch {
		case !ok && optional:
			continue
		case !ok:
			return fmt.Errorf("%w: it has no key %q", ErrManifest, item.Key)
		case !filepath.IsLocal(item.Path):
			return fmt.Errorf("%w: the path %q leads out of the volume", ErrManifest, item.Path)
		}
		perm := os.FileMode(0o644)
		if m := or(item.Mode, mode); m != nil {
			perm = os.FileMode(*m) & 0o777
		}
		name := filepath.Join(dir, item.Path)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
		if err := os.RemoveAll(name); err != nil {
			return err
		}
		if err := os.WriteFile(name, content, 0o600); err != nil {
			return err
		}
		if err := os.Chmod(name, perm); err != nil {
			return err
		}
	}
	return nil
}
