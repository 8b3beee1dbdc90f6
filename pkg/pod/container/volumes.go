package container

import (
	"context"
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/containerd/errdefs"
	securejoin "github.com/cyphar/filepath-securejoin"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/state"
	"github.com/subpod/subpod/pkg/subpath"
)

// maxVolumes bounds the mounts that an image can ask for.
const maxVolumes = 256

// imageVolumes makes the VOLUMEs of the container's image and returns their mounts:
// writable, also where the root file system is read-only, with what the image has at
// their paths, and gone with the container.
func imageVolumes(ctx context.Context, b *Builder, prepared *Prepared, c *state.Container) ([]*runtimeapi.Mount, error) {
	id := c.ID
	taken := slices.Clone(prepared.plan.Config.Mounts)
	for _, t := range prepared.plan.options.Tmpfs {
		taken = append(taken, &runtimeapi.Mount{ContainerPath: t.Path})
	}
	wanted := volumeFilter(taken, c.Allocated.Rootfs)
	var paths []string
	for _, v := range slices.Concat(slices.Collect(maps.Keys(prepared.image.Config.Volumes)), prepared.plan.options.Anonymous) {
		if v = path.Join("/", v); wanted(v) {
			paths = append(paths, v)
		}
	}
	if len(paths) > maxVolumes {
		return nil, fmt.Errorf("%w: its image has %d volumes, and at most %d can be mounted", errdefs.ErrFailedPrecondition, len(paths), maxVolumes)
	}
	slices.Sort(paths)
	paths = slices.Compact(paths)
	made, left, err := b.Rootfs.MakeVolumes(ctx, id, paths, wanted)
	if err != nil {
		return nil, err
	}
	if len(left) > 0 {
		b.Log.Log(ctx, b.once.Level("volumes of "+prepared.image.ID), "volumes of an image left out: nothing can be mounted on their paths (said once, of others at level debug)", "container", id, "paths", left)
	}
	mounts := make([]*runtimeapi.Mount, 0, len(made))
	for i, v := range made {
		source := v.Dir
		if prepared.plan.nested { // its root cannot pass the directories above the store
			if source, err = subpath.Mount(b.subPathDir(id), "volume-"+strconv.Itoa(i), v.Dir, "."); err != nil {
				return nil, err
			}
			recordSource(c, v.Path, v.Dir)
		}
		mounts = append(mounts, &runtimeapi.Mount{ContainerPath: v.Path, HostPath: source})
	}
	return mounts, nil
}

// volumeFilter returns which paths may become a volume: not those at or below which the
// pod has a mount of its own (its data is then where the user wants it), the root
// directory, the kernel's own file systems, and the files that all containers of the pod
// share. Where links of the image lead to the place of a mount, volumes above that are left
// out, too, if they would be mounted later: mounts are sorted by the depth that they name.
func volumeFilter(mounts []*runtimeapi.Mount, rootfs string) func(string) bool {
	taken := []string{"/proc", "/sys", "/dev", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf"}
	linked := map[string]int{} // to the depth that is named
	for _, m := range mounts {
		named := path.Join("/", m.ContainerPath)
		taken = append(taken, named)
		if at, err := securejoin.SecureJoin(rootfs, named); err == nil && at != path.Join(rootfs, named) {
			linked[path.Join("/", strings.TrimPrefix(at, path.Clean(rootfs)))] = depth(named)
		}
	}
	return func(v string) bool {
		for p, named := range linked {
			if isBelow(v, p) || isBelow(p, v) && depth(v) >= named {
				return false
			}
		}
		below := func(p string) bool { return isBelow(v, p) }
		return v != "/" && utf8.ValidString(v) && !strings.ContainsRune(v, 0) && !slices.ContainsFunc(taken, below)
	}
}

func depth(p string) int { return strings.Count(p, "/") }

// isBelow reports whether a path is p or below p.
func isBelow(v, p string) bool { return v == p || strings.HasPrefix(v, p+"/") }
