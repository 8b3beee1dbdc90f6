// Package idmap has the ID maps of user namespaces (user_namespaces(7)).
package idmap

import (
	"bufio"
	"fmt"
	"os"
)

// Map is one line of a uid_map or gid_map: Size IDs from Container on are those from
// Host on. Host IDs are those of the parent user namespace. Maps are stored in
// records, so their JSON form must stay stable.
type Map struct{ Container, Host, Size uint32 }

// Read returns the maps of a uid_map or gid_map file below /proc.
func Read(path string) ([]Map, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read ID map: %w", err)
	}
	defer f.Close()
	var maps []Map
	s := bufio.NewScanner(f)
	for s.Scan() {
		var m Map
		if _, err := fmt.Sscan(s.Text(), &m.Container, &m.Host, &m.Size); err != nil {
			return nil, fmt.Errorf("line %q of ID map %s: %w", s.Text(), path, err)
		}
		maps = append(maps, m)
	}
	return maps, s.Err()
}

// Root returns the host ID of ID 0, or false when it is not mapped.
func Root(maps []Map) (uint32, bool) {
	for _, m := range maps {
		if m.Container == 0 && m.Size > 0 {
			return m.Host, true
		}
	}
	return 0, false
}

// Covered reports whether the maps have all of size container IDs from first on.
func Covered(maps []Map, first, size uint32) bool {
	next, end := uint64(first), uint64(first)+uint64(size)
	for moved := true; moved && next < end; {
		moved = false
		for _, m := range maps {
			if from, to := uint64(m.Container), uint64(m.Container)+uint64(m.Size); from <= next && next < to {
				next, moved = to, true
			}
		}
	}
	return next >= end
}

// Last returns the highest container ID of the maps, 0 when there are none: of the
// node's maps one that images do not use, where the user has enough subordinate IDs.
func Last(maps []Map) uint32 {
	last := uint64(0)
	for _, m := range maps {
		if m.Size > 0 {
			last = max(last, uint64(m.Container)+uint64(m.Size)-1)
		}
	}
	// The highest number of 32 bits is no ID: it stands for "unchanged".
	return uint32(min(last, 1<<32-2))
}
