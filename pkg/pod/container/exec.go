package container

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/api"
	"github.com/subpod/subpod/pkg/ocispec"
	"github.com/subpod/subpod/pkg/state"
)

// ExecProcess returns the process that runs cmd in a container: with the user,
// environment and limits of the container's own. errdefs.ErrInvalidArgument,
// errdefs.ErrFailedPrecondition when the container has ended meanwhile.
func ExecProcess(c state.Container, cmd []string, tty bool) (*specs.Process, error) {
	if len(cmd) == 0 {
		return nil, invalid("exec in container %s: no command", c.ID)
	}
	text, err := os.ReadFile(filepath.Join(c.Allocated.Runtime.Bundle, "config.json"))
	if errors.Is(err, os.ErrNotExist) { // cleaned up
		return nil, fmt.Errorf("%w: exec in container %s: it has ended", errdefs.ErrFailedPrecondition, c.ID)
	}
	if err != nil {
		return nil, fmt.Errorf("read the spec of container %s: %w", c.ID, err)
	}
	// Only the process is of interest: the rest is large.
	var spec struct {
		Process *specs.Process `json:"process"`
	}
	if err := json.Unmarshal(text, &spec); err != nil {
		return nil, fmt.Errorf("read the spec of container %s: %w", c.ID, err)
	}
	return ocispec.ExecProcess(&specs.Spec{Process: spec.Process}, cmd, tty), nil
}

// ChangeProcess changes the process of an exec as its client asks. bounding are the
// capabilities of a privileged one. errdefs.ErrInvalidArgument.
func ChangeProcess(c state.Container, p *specs.Process, o api.ExecOptions, bounding []string) error {
	for _, v := range o.Env {
		name, _, given := strings.Cut(v, "=")
		if name == "" || !given || strings.ContainsRune(v, 0) {
			return invalid("exec: the variable %.40q is not NAME=VALUE", name)
		}
		p.Env = slices.DeleteFunc(p.Env, func(old string) bool { return strings.HasPrefix(old, name+"=") })
		p.Env = append(p.Env, v)
	}
	if o.Dir != "" {
		if !path.IsAbs(o.Dir) || strings.ContainsRune(o.Dir, 0) {
			return invalid("exec: the working directory %.80q is not an absolute path", o.Dir)
		}
		p.Cwd = path.Clean(o.Dir)
	}
	if o.User != "" {
		root := fmt.Sprintf("/proc/%d/root", c.Allocated.Runtime.Init.PID)
		user, err := ocispec.ResolveUser(root, &runtimeapi.LinuxContainerSecurityContext{}, o.User)
		if err != nil {
			return fmt.Errorf("exec: %w", err)
		}
		user.Umask = p.User.Umask
		p.User = user
		if caps := p.Capabilities; caps != nil && user.UID != 0 {
			caps.Effective, caps.Permitted, caps.Ambient = nil, nil, nil
		}
		if caps := p.Capabilities; caps != nil && user.UID == 0 {
			caps.Effective, caps.Permitted = slices.Clone(caps.Bounding), slices.Clone(caps.Bounding)
		}
	}
	if o.Privileged {
		p.Capabilities = &specs.LinuxCapabilities{Bounding: bounding, Effective: bounding, Permitted: bounding}
		p.NoNewPrivileges = false
	}
	return nil
}
