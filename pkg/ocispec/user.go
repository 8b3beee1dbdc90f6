package ocispec

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/user"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/idmap"
	"github.com/subpod/subpod/pkg/openat2"
)

// maxID is the highest user or group ID; the one above means "no change" to the
// kernel (setresuid(2)).
const maxID = 1<<32 - 2

// maxAccounts bounds how much of an image's passwd or group file is read; maxGroups is
// how many groups the kernel gives to a process (NGROUPS_MAX).
const (
	maxAccounts = 8 << 20
	maxGroups   = 65536
)

// ResolveUser returns whom the first process runs as. The rules are those of the
// CRI's LinuxContainerSecurityContext: run_as_user or run_as_username (which must
// be in the image's passwd), else the image's USER (uid, name, uid:gid, name:group
// and mixtures). run_as_group needs one of the former. Without an explicit group
// the primary group of the user in passwd counts, else 0.
//
// AdditionalGids begins with the primary group: without that a process could leave
// it and gain what is denied to the group (CVE-2022-36109). Then, for the policy
// Merge, the groups of the image's group file that list the user, then
// supplemental_groups. ErrInvalid wraps every complaint.
func ResolveUser(rootfs string, sec *runtimeapi.LinuxContainerSecurityContext, imageUser string) (specs.User, error) {
	u, err := requestedUser(sec, imageUser)
	if err != nil {
		return specs.User{}, err
	}
	a, err := readAccounts(rootfs, u)
	if err != nil {
		return specs.User{}, err
	}
	uid, gid, name, err := a.lookup(u)
	if err != nil {
		return specs.User{}, err
	}
	ids := []int64{int64(gid)}
	switch p := sec.GetSupplementalGroupsPolicy(); p {
	case runtimeapi.SupplementalGroupsPolicy_Merge:
		for _, g := range a.groups {
			if name != "" && slices.Contains(g.List, name) && validID(int64(g.Gid)) {
				ids = append(ids, int64(g.Gid))
			}
		}
	case runtimeapi.SupplementalGroupsPolicy_Strict:
	default:
		return specs.User{}, invalid("unknown supplemental_groups_policy %d", p)
	}
	groups, err := distinct(append(ids, sec.GetSupplementalGroups()...))
	return specs.User{UID: uid, GID: gid, AdditionalGids: groups}, err
}

// distinct returns group IDs, each once.
func distinct(ids []int64) ([]uint32, error) {
	var out []uint32
	seen := map[int64]bool{}
	for _, g := range ids {
		switch {
		case !validID(g):
			return nil, invalid("supplemental group %d", g)
		case seen[g]:
			continue
		case len(out) == maxGroups:
			return nil, invalid("the user is in more than %d groups", maxGroups)
		}
		seen[g] = true
		out = append(out, uint32(g))
	}
	return out, nil
}

// request is a user and a group as written; "" = not given. named forces the
// user to be looked up by name, even if it looks like a number.
type request struct {
	user, group string
	named       bool
}

func requestedUser(sec *runtimeapi.LinuxContainerSecurityContext, imageUser string) (request, error) {
	byID, byName, group := sec.GetRunAsUser(), sec.GetRunAsUsername(), sec.GetRunAsGroup()
	switch {
	case byID != nil && byName != "":
		return request{}, invalid("both run_as_user and run_as_username are given")
	case group != nil && byID == nil && byName == "":
		return request{}, invalid("run_as_group is given without run_as_user or run_as_username")
	}
	r := request{user: byName, named: byName != ""}
	if byID != nil {
		r.user = strconv.FormatInt(byID.Value, 10)
	}
	if group != nil {
		r.group = strconv.FormatInt(group.Value, 10)
	}
	if r.user == "" {
		r.user, r.group, _ = strings.Cut(imageUser, ":")
	}
	return r, nil
}

func validID(id int64) bool { return id >= 0 && id <= maxID }

// accounts are the users and groups of an image that matter for one request.
type accounts struct {
	users  []user.User
	groups []user.Group
}

// lookup returns the IDs and the user's name ("" when passwd has none).
func (a accounts) lookup(r request) (uid, gid uint32, name string, err error) {
	var entry *user.User
	number, numErr := strconv.ParseInt(r.user, 10, 64)
	switch {
	case r.user == "":
		entry = a.byUID(0)
	case numErr == nil && !r.named:
		if !validID(number) {
			return 0, 0, "", invalid("user ID %d", number)
		}
		uid = uint32(number)
		entry = a.byUID(number)
	default:
		if entry = a.byName(r.user); entry == nil {
			return 0, 0, "", invalid("user %.64q is not in the image's /etc/passwd", r.user)
		}
		if !validID(int64(entry.Uid)) || !validID(int64(entry.Gid)) {
			return 0, 0, "", invalid("user %.64q has the IDs %d:%d in the image's /etc/passwd", r.user, entry.Uid, entry.Gid)
		}
		uid = uint32(entry.Uid)
	}
	if entry != nil {
		name = entry.Name
		if validID(int64(entry.Gid)) {
			gid = uint32(entry.Gid)
		}
	}
	if r.group != "" {
		gid, err = a.group(r.group)
	}
	return uid, gid, name, err
}

func (a accounts) group(s string) (uint32, error) {
	if n, err := strconv.ParseInt(s, 10, 64); err == nil {
		if !validID(n) {
			return 0, invalid("group ID %d", n)
		}
		return uint32(n), nil
	}
	for _, g := range a.groups {
		if g.Name == s && validID(int64(g.Gid)) {
			return uint32(g.Gid), nil
		}
	}
	return 0, invalid("group %.64q is not in the image's /etc/group", s)
}

func (a accounts) byUID(uid int64) *user.User {
	i := slices.IndexFunc(a.users, func(u user.User) bool { return int64(u.Uid) == uid && u.Name != "" })
	if i < 0 {
		return nil
	}
	return &a.users[i]
}

func (a accounts) byName(name string) *user.User {
	i := slices.IndexFunc(a.users, func(u user.User) bool { return u.Name == name })
	if i < 0 {
		return nil
	}
	return &a.users[i]
}

// readAccounts keeps the first user of the requested name, the first of the requested ID,
// and the groups that either is in or that are requested: the files can be as long as they
// like.
func readAccounts(rootfs string, r request) (accounts, error) {
	var a accounts
	uid, err := strconv.ParseInt(cmp.Or(r.user, "0"), 10, 64)
	number := err == nil
	err = readInRoot(rootfs, "etc/passwd", func(f io.Reader) (err error) {
		a.users, err = user.ParsePasswdFilter(passwdLines(f), firstOf(
			func(u user.User) bool { return u.Name == r.user },
			func(u user.User) bool { return number && int64(u.Uid) == uid && u.Name != "" }))
		return err
	})
	if err != nil {
		return a, err
	}
	err = readInRoot(rootfs, "etc/group", func(f io.Reader) (err error) {
		a.groups, err = user.ParseGroupFilter(groupLines(f), func(g user.Group) bool {
			return g.Name == r.group || slices.ContainsFunc(a.users, func(u user.User) bool { return slices.Contains(g.List, u.Name) })
		})
		return err
	})
	return a, err
}

// firstOf returns a filter that takes the first user that each condition holds for.
func firstOf(conditions ...func(user.User) bool) func(user.User) bool {
	found := make([]bool, len(conditions))
	return func(u user.User) bool {
		take := false
		for i, holds := range conditions {
			if !found[i] && holds(u) {
				found[i], take = true, true
			}
		}
		return take
	}
}

// readInRoot parses a regular file of the image. No path, link or special file in
// it can lead outside or block. A missing file is an empty one.
func readInRoot(rootfs, name string, parse func(io.Reader) error) error {
	root, err := unix.Open(rootfs, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open root file system %s: %w", rootfs, err)
	}
	defer unix.Close(root)
	fd, err := openat2.InRoot(root, name, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY)
	switch {
	case errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR):
		return nil
	case errors.Is(err, unix.ELOOP):
		return invalid("/%s of the image is a loop of symbolic links", name)
	case errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENODEV):
		return invalid("/%s of the image is not a regular file", name)
	case err != nil:
		return fmt.Errorf("open /%s of the image: %w", name, err)
	}
	return parseAccounts(fd, name, parse)
}

// parseAccounts parses a regular file that is not too long, and closes it.
func parseAccounts(fd int, name string, parse func(io.Reader) error) error {
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("/%s of the image: %w", name, err)
	}
	if !info.Mode().IsRegular() {
		return invalid("/%s of the image is not a regular file", name)
	}
	if info.Size() > maxAccounts {
		return invalid("/%s of the image has %d bytes, more than %d", name, info.Size(), maxAccounts)
	}
	if err := parse(io.LimitReader(f, maxAccounts)); err != nil {
		return invalid("/%s of the image: %w", name, err)
	}
	return nil
}

// user resolves the user and checks that the IDs exist in the container's user
// namespace: the runtime's own error ("Invalid argument") would not tell.
func (b *builder) user() error {
	u, err := ResolveUser(b.Rootfs, b.sec, b.Image.User)
	if err != nil {
		return err
	}
	uids, gids := b.Host.UIDMap, b.Host.GIDMap
	if b.Namespaces.User != "" {
		opts := b.podUserns()
		uids, gids = mappings(opts.GetUids()), mappings(opts.GetGids())
	}
	if !mapped(uids, u.UID) {
		return invalid("user ID %d is outside of the user namespace: %s", u.UID, describe(uids))
	}
	asked := append([]int64{int64(u.GID)}, b.sec.GetSupplementalGroups()...)
	groups := u.AdditionalGids
	u.AdditionalGids = nil
	var left []uint32
	for _, g := range groups {
		switch {
		case mapped(gids, g):
			u.AdditionalGids = append(u.AdditionalGids, g)
		case slices.Contains(asked, int64(g)):
			return invalid("group ID %d is outside of the user namespace: %s", g, describe(gids))
		default:
			left = append(left, g)
		}
	}
	if len(left) > 0 {
		b.warn("group %d of the image's group file, the first of %d, is left out: it is outside of the user namespace", left[0], len(left))
	}
	b.spec.Process.User = u
	return nil
}

// mapped reports whether the maps have the ID; no maps mean all IDs.
func mapped(maps []idmap.Map, id uint32) bool {
	return len(maps) == 0 || idmap.Covered(maps, id, 1)
}

func describe(maps []idmap.Map) string {
	var parts []string
	for _, m := range maps {
		parts = append(parts, fmt.Sprintf("%d-%d", m.Container, uint64(m.Container)+uint64(m.Size)-1))
	}
	return "it has the IDs " + strings.Join(parts, ", ") + "; a bigger range in /etc/subuid and /etc/subgid would help"
}
