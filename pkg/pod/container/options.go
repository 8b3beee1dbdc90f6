package container

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/api"
	"github.com/subpod/subpod/pkg/idmap"
	"github.com/subpod/subpod/pkg/ocispec"
	"github.com/subpod/subpod/pkg/state"
	"github.com/subpod/subpod/pkg/volumes"
)

// parseOptions reads what a command asks for that the CRI has no field for
// (api.AnnotationOptions). errdefs.ErrInvalidArgument.
func parseOptions(cfg *runtimeapi.ContainerConfig) (*api.ContainerOptions, error) {
	o, err := api.Options(cfg.GetAnnotations())
	if err != nil {
		return nil, invalid("%w", err)
	}
	for _, v := range o.Volumes {
		mounts := func(m *runtimeapi.Mount) bool {
			return m.ContainerPath == v.Path && filepath.Base(m.HostPath) == v.Name
		}
		if err := volumes.CheckName(v.Name); err != nil {
			return nil, err
		}
		if !slices.ContainsFunc(cfg.Mounts, mounts) {
			return nil, invalid("volume %s: there is no mount of it on %s", v.Name, v.Path)
		}
	}
	for _, s := range o.Secrets {
		if err := volumes.CheckName(s.Name); err != nil || !path.IsAbs(s.Path) || s.Mode > 0o7777 {
			return nil, invalid("secret %.80q on %.80q: a name, an absolute path and a mode are needed", s.Name, s.Path)
		}
	}
	return o, checkHealth(o.Health)
}

// minInterval is the least time between two health checks.
const minInterval = time.Second

// checkHealth refuses a health check that would keep the server busy, or that it does not
// know how to act on. Times of 0 are defaults.
func checkHealth(h *api.Health) error {
	if h == nil {
		return nil
	}
	switch h.OnFailure {
	case "", "none", "kill", "restart", "stop":
	default:
		return invalid("health check: %q is not none, kill, restart or stop", h.OnFailure)
	}
	if len(h.Command) == 0 || h.Interval != 0 && h.Interval < minInterval || h.Timeout < 0 || h.StartPeriod < 0 || h.Retries < 0 {
		return invalid("health check: a command and an interval of at least %v are needed; nothing can be below 0", minInterval)
	}
	return nil
}

// extra returns the part of the options that the OCI specification has.
func extra(o *api.ContainerOptions, init string) (ocispec.Extra, error) {
	out := ocispec.Extra{Umask: o.Umask, Groups: o.Groups, UnsetEnv: o.UnsetEnv, UnsetAll: o.UnsetAll}
	for _, r := range o.Rlimits {
		out.Rlimits = append(out.Rlimits, specs.POSIXRlimit{Type: r.Name, Soft: r.Soft, Hard: r.Hard})
	}
	for _, t := range o.Tmpfs {
		out.Tmpfs = append(out.Tmpfs, specs.Mount{Destination: t.Path, Options: t.Options})
	}
	if o.Init {
		if _, err := os.Stat(init); init == "" || err != nil {
			return out, fmt.Errorf("%w: there is no init process for containers: %s is missing beside subpod-server", errdefs.ErrFailedPrecondition, filepath.Base(init))
		}
		out.Init = init
	}
	return out, nil
}

// fillVolumes makes the named volumes of a container that are missing, and gives the
// empty ones what the image has at their paths: not when c is made again, as it may have
// emptied them itself.
func fillVolumes(ctx context.Context, b *Builder, c state.Container, named []api.NamedVolume) error {
	for _, v := range named {
		copyOut := func(dir string) error { return b.Rootfs.CopyOut(ctx, c.ID, v.Path, dir) }
		if v.NoCopy || c.Allocated.Remaking {
			copyOut = nil
		}
		if err := b.Volumes.Fill(v.Name, copyOut); err != nil {
			return fmt.Errorf("volume %s: %w", v.Name, err)
		}
	}
	return nil
}

// secretMounts writes the secrets of a container beside its specification, which no other
// user can read, and returns their mounts. They go with the bundle.
func secretMounts(b *Builder, id string, p state.Pod, secrets []api.SecretMount) ([]*runtimeapi.Mount, error) {
	ids := rootfsSpec(p, state.Container{})
	var mounts []*runtimeapi.Mount
	for i, s := range secrets {
		text, err := os.ReadFile(filepath.Join(b.SecretDir, s.Name))
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%w: there is no secret %s; see \"subpod secret ls\"", errdefs.ErrNotFound, s.Name)
		}
		if err != nil {
			return nil, fmt.Errorf("read secret %s: %w", s.Name, err)
		}
		file := filepath.Join(b.bundle(id), "secret-"+strconv.Itoa(i))
		if err := os.WriteFile(file, text, 0o600); err != nil {
			return nil, fmt.Errorf("write secret %s: %w", s.Name, err)
		}
		if err := errors.Join(os.Chown(file, onNode(ids.UIDMap, s.UID), onNode(ids.GIDMap, s.GID)), os.Chmod(file, fs.FileMode(s.Mode))); err != nil {
			return nil, fmt.Errorf("secret %s for user %d, group %d: %w", s.Name, s.UID, s.GID, err)
		}
		mounts = append(mounts, &runtimeapi.Mount{ContainerPath: s.Path, HostPath: file, Readonly: true})
	}
	return mounts, nil
}

// onNode returns the ID of the node that a container's ID is; an ID that is not mapped is
// -1, which leaves the file's owner.
func onNode(maps []idmap.Map, id uint32) int {
	if len(maps) == 0 {
		return int(id)
	}
	for _, m := range maps {
		if id >= m.Container && id-m.Container < m.Size {
			return int(m.Host + (id - m.Container))
		}
	}
	return -1
}
