package rootless

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"slices"
	"strconv"
	"strings"
)

// SubIDs is a range of subordinate IDs: Size IDs from First on, as seen from the
// user namespace of the caller.
type SubIDs struct{ First, Size uint32 }

// WantIDs is the size of range that images of distributions expect.
const WantIDs = 65536

// SubordinateIDs returns the ranges of the user: by getsubids(1), which also
// knows of LDAP and its like, else from /etc/subuid and /etc/subgid, in both cases
// by name and by uid.
func (h Host) SubordinateIDs() (uids, gids []SubIDs) {
	return h.rangesOf("/etc/subuid"), h.rangesOf("/etc/subgid", "-g")
}

func (h Host) rangesOf(file string, flags ...string) []SubIDs {
	keys := []string{strconv.Itoa(h.UID)}
	if h.Name != "" {
		keys = append([]string{h.Name}, keys...)
	}
	var ranges []SubIDs
	add := func(r SubIDs) {
		if r.Size > 0 && !slices.Contains(ranges, r) {
			ranges = append(ranges, r)
		}
	}
	if getsubids, err := h.LookPath("getsubids"); err == nil {
		for _, key := range keys {
			// An error: it knows no such user.
			out, _ := exec.Command(getsubids, append(slices.Clone(flags), key)...).Output()
			for line := range strings.Lines(string(out)) {
				// "0: name 100000 65536"
				if f := strings.Fields(line); len(f) == 4 {
					add(parseRange(f[2], f[3]))
				}
			}
		}
	}
	if ranges != nil {
		return ranges
	}
	for _, e := range readSubIDFile(h.File(file)) {
		if slices.Contains(keys, e.owner) {
			add(e.SubIDs)
		}
	}
	return ranges
}

type subIDEntry struct {
	owner string
	SubIDs
}

// readSubIDFile reads lines of subuid(5); a missing file has none.
func readSubIDFile(name string) []subIDEntry {
	f, err := os.Open(name)
	if err != nil {
		return nil
	}
	defer f.Close()
	return parseSubIDs(f)
}

func parseSubIDs(r io.Reader) []subIDEntry {
	var entries []subIDEntry
	sc := bufio.NewScanner(r)
	for sc.Scan() {
		f := strings.Split(strings.TrimSpace(sc.Text()), ":")
		if len(f) == 3 && f[0] != "" && f[0][0] != '#' {
			entries = append(entries, subIDEntry{f[0], parseRange(f[1], f[2])})
		}
	}
	return entries
}

// parseRange returns the zero range for what is not one.
func parseRange(first, size string) SubIDs {
	a, err1 := strconv.ParseUint(first, 10, 32)
	n, err2 := strconv.ParseUint(size, 10, 32)
	if err1 != nil || err2 != nil || a+n > 1<<32-1 {
		return SubIDs{}
	}
	return SubIDs{uint32(a), uint32(n)}
}

// currentUser returns the calling user also when only NSS knows it (LDAP,
// sssd), which a static Go program cannot ask. Rootlesskit finds such a user
// through the same environment.
func currentUser() (*user.User, error) {
	// Not user.Current: it remembers its first answer, and rootlesskit asks it after
	// we have set what it looks for.
	uid := strconv.Itoa(os.Geteuid())
	u, err := user.LookupId(uid)
	if err == nil {
		return u, nil
	}
	out, getentErr := exec.Command("getent", "passwd", uid).Output()
	f := strings.Split(strings.TrimSpace(string(out)), ":")
	if name, home := os.Getenv("USER"), os.Getenv("HOME"); (getentErr != nil || len(f) < 7) && name != "" && home != "" {
		return &user.User{Username: name, Uid: uid, Gid: strconv.Itoa(os.Getegid()), HomeDir: home}, nil
	}
	if getentErr != nil || len(f) < 7 {
		return nil, fmt.Errorf("uid %s has no name (neither /etc/passwd nor getent passwd knows it): set USER and HOME: %w", uid, err)
	}
	for k, v := range map[string]string{"USER": f[0], "HOME": f[5]} {
		if os.Getenv(k) == "" {
			if err := os.Setenv(k, v); err != nil {
				return nil, err
			}
		}
	}
	return &user.User{Username: f[0], Uid: f[2], Gid: f[3], HomeDir: f[5]}, nil
}

// SubIDs makes sure that the user has subordinate IDs, and that they can be
// mapped from where we are.
func (h Host) SubIDs() *Problem {
	if h.nameErr != nil {
		return &Problem{ErrNoSubIDs, h.nameErr.Error(), ""}
	}
	uids, gids := h.SubordinateIDs()
	if uids == nil || gids == nil {
		file := "/etc/subuid"
		if uids != nil {
			file = "/etc/subgid"
		}
		return &Problem{ErrNoSubIDs,
			fmt.Sprintf("user %s (uid %d) has none in %s, and getsubids knows of none", h.Name, h.UID, file),
			h.subIDFix(uids == nil, gids == nil)}
	}
	return h.checkWindow(uids, gids)
}

// checkWindow: only what is mapped in the user namespace around us can be mapped
// in one that we make.
func (h Host) checkWindow(uids, gids []SubIDs) *Problem {
	for _, m := range []struct {
		name   string
		window []IDMap
		ranges []SubIDs
	}{{"uid_map", h.UIDMap, uids}, {"gid_map", h.GIDMap, gids}} {
		for _, r := range m.ranges {
			if !mapped(m.window, r) {
				return &Problem{ErrNoSubIDs, fmt.Sprintf("the range %d:%d of user %s is not mapped in the user namespace "+
					"that we are in already (/proc/self/%s: %v)", r.First, r.Size, h.Name, m.name, m.window),
					"give the user, in this container's /etc/subuid and /etc/subgid, a range that lies in it"}
			}
		}
	}
	return nil
}

// mapped reports whether one line of an ID map covers the whole range.
func mapped(window []IDMap, r SubIDs) bool {
	for _, m := range window {
		if r.First >= m.Container && uint64(r.First)+uint64(r.Size) <= uint64(m.Container)+uint64(m.Size) {
			return true
		}
	}
	return false
}

// MoreIDs is the command that gives the user another, full range.
func (h Host) MoreIDs() string { return h.subIDFix(true, true) }

// subIDFix is the command that gives the user a range that is free on this host.
func (h Host) subIDFix(needUIDs, needGIDs bool) string {
	taken := append(readSubIDFile(h.File("/etc/subuid")), readSubIDFile(h.File("/etc/subgid"))...)
	first := freeRange(taken)
	span := fmt.Sprintf("%d-%d", first, first+WantIDs-1)
	cmd := "sudo usermod"
	if needUIDs {
		cmd += " --add-subuids " + span
	}
	if needGIDs {
		cmd += " --add-subgids " + span
	}
	name := h.Name
	if name == "" {
		name = strconv.Itoa(h.UID)
	}
	return cmd + " " + name
}

// freeRange returns the first multiple of WantIDs above the usual minimum
// (100000, login.defs(5)) that is above all ranges taken.
func freeRange(taken []subIDEntry) uint32 {
	first := uint32(100000)
	for _, e := range taken {
		if end := e.First + e.Size; end > first {
			first = end
		}
	}
	return first
}
