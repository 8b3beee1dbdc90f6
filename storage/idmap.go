package storage

import (
	"fmt"
	"os"
	"strings"

	"github.com/subpod/subpod/pkg/idmap"
)

// IDMap is one line of an ID map. Host IDs are those of the user namespace that the
// store lives in.
type IDMap = idmap.Map

// fuseMapping renders maps as fuse-overlayfs wants them: c:h:n[:c:h:n…].
func fuseMapping(maps []IDMap) string {
	parts := make([]string, 0, len(maps))
	for _, m := range maps {
		parts = append(parts, fmt.Sprintf("%d:%d:%d", m.Container, m.Host, m.Size))
	}
	return strings.Join(parts, ":")
}

// rootOf returns the host ID of ID 0, or false when it is not mapped.
func rootOf(maps []IDMap) (uint32, bool) {
	for _, m := range maps {
		if m.Container == 0 && m.Size > 0 {
			return m.Host, true
		}
	}
	return 0, false
}

// ownRange returns the ID map of this process's user namespace.
func ownRange(kind string) []IDMap {
	data, err := os.ReadFile("/proc/self/" + kind + "_map")
	if err != nil {
		return nil
	}
	var maps []IDMap
	for line := range strings.Lines(string(data)) {
		var m IDMap
		if n, _ := fmt.Sscan(line, &m.Container, &m.Host, &m.Size); n == 3 {
			maps = append(maps, m)
		}
	}
	return maps
}

// idCount returns how many IDs of kind ("uid" or "gid") are mapped here.
func idCount(kind string) uint64 {
	var n uint64
	for _, m := range ownRange(kind) {
		n += uint64(m.Size)
	}
	return n
}

func idRanges() string {
	return fmt.Sprintf("%d user and %d group IDs (see uid_map(5)); more come from /etc/subuid and /etc/subgid: "+
		"usermod --add-subuids FIRST-LAST --add-subgids FIRST-LAST USER", idCount("uid"), idCount("gid"))
}
