package monitor

import (
	"bytes"

	"golang.org/x/sys/unix"
)

// oomKilled reads memory.events of a cgroup (cgroup v2: "oom_kill N").
func oomKilled(fd int) bool {
	b := make([]byte, 1024)
	n, err := unix.Pread(fd, b, 0)
	if err != nil {
		return false
	}
	for line := range bytes.Lines(b[:n]) {
		if count, ok := bytes.CutPrefix(line, []byte("oom_kill ")); ok {
			return !bytes.Equal(bytes.TrimSpace(count), []byte("0"))
		}
	}
	return false
}
