package ocispec

import (
	"io"
	"slices"
	"strings"

	"github.com/moby/sys/user"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Extra is what a container gets that the CRI has no field for.
type Extra struct {
	// Rlimits replace the defaults of the same type. One above the host's hard limit is
	// refused: it was asked for by name.
	Rlimits []specs.POSIXRlimit
	// Tmpfs are file systems in memory: Destination and Options are set.
	Tmpfs []specs.Mount
	Umask *uint32
	// Groups are supplementary groups by name or ID.
	Groups []string
	// UnsetEnv are variables to leave out of what the image and the defaults set.
	UnsetEnv []string
	UnsetAll bool
	// Init is the path on the node of an init process, which is run as the first one.
	Init string
}

// initPath is where a container has its init process, and the name by which that knows
// what it is to be (cmd/subpod-node).
const initPath = "/run/.subpod-init"

// extra applies what the other steps do not.
func (b *builder) extra() error {
	if err := b.extraRlimits(); err != nil {
		return err
	}
	if err := b.extraGroups(); err != nil {
		return err
	}
	if b.Extra.Umask != nil {
		if *b.Extra.Umask > 0o777 {
			return invalid("umask %o is not between 0 and 777", *b.Extra.Umask)
		}
		b.spec.Process.User.Umask = b.Extra.Umask
	}
	if b.Extra.Init != "" {
		b.spec.Process.Args = slices.Concat([]string{initPath, "--"}, b.spec.Process.Args)
		b.spec.Mounts = append(b.spec.Mounts, b.bind(initPath, b.Extra.Init, "bind", "rprivate", "ro", "nosuid", "nodev"))
	}
	return nil
}

func (b *builder) extraRlimits() error {
	for _, r := range b.Extra.Rlimits {
		if _, ok := rlimits[r.Type]; !ok {
			return invalid("unknown resource limit %q", r.Type)
		}
		if r.Soft > r.Hard {
			return invalid("resource limit %s: the soft limit %d is above the hard limit %d", r.Type, r.Soft, r.Hard)
		}
		if hard, ok := b.Host.HardLimits[r.Type]; ok && r.Hard > hard {
			return invalid("resource limit %s of %d is above the daemon's own hard limit %d, which only root can raise", r.Type, r.Hard, hard)
		}
		b.gen.AddProcessRlimits(r.Type, r.Hard, r.Soft)
	}
	return nil
}

// extraTmpfs checks the tmpfs that are asked for.
func (b *builder) extraTmpfs() ([]specs.Mount, error) {
	var out []specs.Mount
	for _, m := range b.Extra.Tmpfs {
		dst, err := destination(m.Destination)
		if err != nil {
			return nil, err
		}
		options := []string{}
		for _, o := range m.Options {
			name, _, _ := strings.Cut(o, "=")
			if _, ok := mountOptions[o]; !ok && !slices.Contains(tmpfsOptions, name) || carriable("", o) != nil {
				return nil, invalid("tmpfs on %s: unknown option %.40q", dst, o)
			}
			options = append(options, o)
		}
		out = append(out, specs.Mount{Destination: dst, Type: "tmpfs", Source: "tmpfs", Options: options})
	}
	return out, nil
}

// tmpfsOptions are those of tmpfs(5) that a container may set, and of the mount.
var tmpfsOptions = []string{"size", "mode", "uid", "gid", "nr_inodes", "nr_blocks", "rw", "ro", "tmpcopyup", "rprivate", "private"}

// extraGroups adds the groups that are asked for by name.
func (b *builder) extraGroups() error {
	if len(b.Extra.Groups) == 0 {
		return nil
	}
	found := map[string]uint32{}
	err := readInRoot(b.Rootfs, "etc/group", func(f io.Reader) error {
		groups, err := user.ParseGroupFilter(groupLines(f), func(g user.Group) bool { return slices.Contains(b.Extra.Groups, g.Name) })
		for _, g := range groups {
			if _, ok := found[g.Name]; !ok && validID(int64(g.Gid)) {
				found[g.Name] = uint32(g.Gid)
			}
		}
		return err
	})
	if err != nil {
		return err
	}
	u := &b.spec.Process.User
	for _, name := range b.Extra.Groups {
		gid, ok := found[name]
		if !ok {
			return invalid("group %q is not in the image's /etc/group", name)
		}
		if gids := b.gids(); !mapped(gids, gid) {
			return invalid("group ID %d is outside of the user namespace: %s", gid, describe(gids))
		}
		if !slices.Contains(u.AdditionalGids, gid) {
			u.AdditionalGids = append(u.AdditionalGids, gid)
		}
	}
	return nil
}

// wantsEnv reports whether a variable of the image or the defaults is kept.
func (b *builder) wantsEnv(v string) bool {
	name, _, _ := strings.Cut(v, "=")
	return !b.Extra.UnsetAll && !slices.Contains(b.Extra.UnsetEnv, name)
}
