package netns

import (
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/subpod/subpod/pkg/idmap"
)

// pingGroupRange is the range of groups that may send ICMP echo requests without
// CAP_NET_RAW (icmp(7)). The kernel reads it in the user namespace of the writer, refuses
// ends that are not mapped there, such as those of the customary "0 2147483647", and
// compares the host's IDs.
const pingGroupRange = "net/ipv4/ping_group_range"

// ownGroups are the maps of the process's own user namespace, which never change.
var ownGroups = groupMaps{file: "/proc/self/gid_map"}

// groupMaps reads the maps in a file until it has them.
type groupMaps struct {
	file  string
	known atomic.Pointer[[]idmap.Map]
}

func (g *groupMaps) read() ([]idmap.Map, error) {
	if maps := g.known.Load(); maps != nil {
		return *maps, nil
	}
	maps, err := idmap.Read(g.file)
	if err == nil {
		g.known.Store(&maps)
	}
	return maps, err
}

// mappedGroups cuts a range of group IDs to those that the maps have: to the widest part
// whose ends are in order on the host. What is no range, or has nothing in common with
// the maps, stays as it is for the kernel to judge.
func mappedGroups(value string, maps []idmap.Map) string {
	low, high, ok := parseRange(value)
	if !ok {
		return value
	}
	var from, to uint64
	found := false
	for _, a := range maps {
		for _, b := range maps {
			first := max(low, uint64(a.Container))
			last := min(high, uint64(b.Container)+uint64(b.Size)-1)
			if first > uint64(a.Container)+uint64(a.Size)-1 || last < uint64(b.Container) || first > last || hostOf(a, first) > hostOf(b, last) {
				continue
			}
			if !found || last-first > to-from {
				from, to, found = first, last, true
			}
		}
	}
	if !found {
		return value
	}
	return fmt.Sprintf("%d %d", from, to)
}

func hostOf(m idmap.Map, id uint64) uint64 { return uint64(m.Host) + id - uint64(m.Container) }

// parseRange reads "LOW HIGH". "1 0" is no range: it stands for nobody.
func parseRange(value string) (low, high uint64, ok bool) {
	ends := strings.Fields(value)
	if len(ends) != 2 {
		return 0, 0, false
	}
	low, err1 := strconv.ParseUint(ends[0], 10, 32)
	high, err2 := strconv.ParseUint(ends[1], 10, 32)
	return low, high, err1 == nil && err2 == nil && low <= high
}

// outerGroups translates a range of groups of a nested user namespace to the caller's,
// which is where the sysctl is written.
func outerGroups(value string, nested []idmap.Map) string {
	low, high, ok := parseRange(value)
	if !ok {
		return value
	}
	for _, m := range nested {
		first, last := max(low, uint64(m.Container)), min(high, uint64(m.Container)+uint64(m.Size)-1)
		if first <= last {
			return fmt.Sprintf("%d %d", hostOf(m, first), hostOf(m, last))
		}
	}
	return value
}
