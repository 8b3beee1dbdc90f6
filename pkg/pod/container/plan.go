package container

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/api"
	"github.com/subpod/subpod/pkg/cgroup"
	"github.com/subpod/subpod/pkg/state"
	"github.com/subpod/subpod/pkg/subpath"
)

// Plan is a validated container configuration, parsed once.
type Plan struct {
	Config *runtimeapi.ContainerConfig

	logPath     string // absolute, "" for none
	imageMounts []string
	nested      bool              // the pod has a user namespace of its own
	subPaths    map[string]string // by container path, see api.AnnotationSubPaths
	options     *api.ContainerOptions
	group       cgroup.Pod
	cgroupsPath string
	cgroup      string
	target      *state.Container // whose PID namespace is joined; nil for none
	firstMount  int              // the number of the first mount, where there are others
}

// Target returns the ID of the container whose PID namespace the configuration asks
// to join; "" for none.
func Target(cfg *runtimeapi.ContainerConfig) string {
	ns := cfg.GetLinux().GetSecurityContext().GetNamespaceOptions()
	if ns.GetPid() != runtimeapi.NamespaceMode_TARGET {
		return ""
	}
	return ns.GetTargetId()
}

// Validate checks what every container configuration must have.
// errdefs.ErrInvalidArgument.
func Validate(cfg *runtimeapi.ContainerConfig) error {
	switch {
	case cfg == nil:
		return invalid("the container has no config")
	case cfg.Metadata == nil || cfg.Metadata.Name == "":
		return invalid("the container has no metadata.name")
	case cfg.GetImage().GetImage() == "":
		return invalid("container %q names no image", cfg.Metadata.Name)
	}
	return nil
}

// Fits checks what a new container, but none of an older version's record, has to keep to:
// it is privileged only in a pod sandbox that is (proto:
// LinuxSandboxSecurityContext.privileged), and asks for no image volume that it could write
// to (proto: Mount.image). errdefs.ErrInvalidArgument.
func Fits(cfg *runtimeapi.ContainerConfig, p state.Pod) error {
	for _, m := range cfg.GetMounts() {
		if m.GetImage().GetImage() != "" && !m.Readonly {
			return invalid("container %q: the image volume on %s is not readonly: set readonly of the mount", cfg.GetMetadata().GetName(), m.ContainerPath)
		}
	}
	if cfg.GetLinux().GetSecurityContext().GetPrivileged() && !p.Config.V.GetLinux().GetSecurityContext().GetPrivileged() {
		return invalid("container %q is privileged, and pod sandbox %s is not: set linux.security_context.privileged of the pod sandbox, too", cfg.GetMetadata().GetName(), p.ID)
	}
	return nil
}

// NewPlan parses and validates the configuration of the container id in the pod
// sandbox p. target is the record of the container that Target names, nil where
// there is none. errdefs.ErrInvalidArgument, errdefs.ErrFailedPrecondition,
// cgroup.ErrBadParent.
func NewPlan(id string, cfg *runtimeapi.ContainerConfig, p state.Pod, target *state.Container, delegation cgroup.Delegation) (Plan, error) {
	if err := Validate(cfg); err != nil {
		return Plan{}, err
	}
	plan := Plan{Config: cfg, target: target, nested: hasUserNamespace(p)}
	for i, m := range cfg.Mounts {
		if m.GetImage().GetImage() != "" {
			plan.imageMounts = append(plan.imageMounts, fmt.Sprintf("%s-%d", id, i))
		}
	}
	var err error
	if plan.subPaths, err = parseSubPaths(cfg); err != nil {
		return Plan{}, err
	}
	if plan.options, err = parseOptions(cfg); err != nil {
		return Plan{}, err
	}
	if plan.logPath, err = logPath(p.Config.V, cfg); err != nil {
		return Plan{}, err
	}
	if err := validateNamespaces(p, cfg, target); err != nil {
		return Plan{}, err
	}
	if plan.group, err = delegation.PodPath(p.Config.V.GetLinux().GetCgroupParent(), p.ID); err != nil {
		return Plan{}, err
	}
	plan.cgroupsPath, plan.cgroup = plan.group.Container(id)
	return plan, nil
}

// Resources returns the resources that a new container's record has before any of them exists.
func (p Plan) Resources(node string) state.ContainerResources {
	return state.ContainerResources{Node: node, LogPath: p.logPath, Cgroup: p.cgroup, ImageMounts: p.imageMounts}
}

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: %w", errdefs.ErrInvalidArgument, fmt.Errorf(format, args...))
}

// logPath joins the pod's log directory and the container's path below it; ""
// when the container has no log.
func logPath(pod *runtimeapi.PodSandboxConfig, cfg *runtimeapi.ContainerConfig) (string, error) {
	if pod.GetLogDirectory() == "" || cfg.LogPath == "" {
		return "", nil
	}
	if !filepath.IsLocal(cfg.LogPath) {
		return "", invalid("log_path %q leads out of the pod's log directory", cfg.LogPath)
	}
	path := filepath.Join(pod.LogDirectory, cfg.LogPath)
	if strings.ContainsRune(path, 0) {
		return "", invalid("log file %q: the name has a zero byte", path)
	}
	return path, nil
}

// parseSubPaths returns the sub paths of a container's mounts, by container path
// (api.AnnotationSubPaths).
func parseSubPaths(cfg *runtimeapi.ContainerConfig) (map[string]string, error) {
	text := cfg.GetAnnotations()[api.AnnotationSubPaths]
	if text == "" {
		return nil, nil
	}
	var out map[string]string
	if err := json.Unmarshal([]byte(text), &out); err != nil {
		return nil, invalid("annotation %s: %w", api.AnnotationSubPaths, err)
	}
	for target, sub := range out {
		mounts := func(m *runtimeapi.Mount) bool { return m.ContainerPath == target && m.GetImage().GetImage() == "" }
		if !slices.ContainsFunc(cfg.Mounts, mounts) {
			return nil, invalid("annotation %s: there is no mount of a host path on %s", api.AnnotationSubPaths, target)
		}
		if err := subpath.Check(sub); err != nil {
			return nil, invalid("annotation %s: %w", api.AnnotationSubPaths, err)
		}
	}
	return out, nil
}
