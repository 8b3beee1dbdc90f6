package stats

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/pkg/proc"
)

// maxLinks is how many open files one request for metrics looks at, of all containers: a
// container may have as many as it likes.
const maxLinks = 65536

// handles are the open files of a container.
type handles struct {
	files, sockets uint64
	socketsKnown   bool // false when there were more files than could be looked at
}

// handles counts the open files of the container whose main process is init; nil when it
// does not run. It takes what it looks at from links.
func (t *processes) handles(init proc.ID, links *int) *handles {
	ps := t.of(init)
	if len(ps) == 0 {
		return nil
	}
	h := &handles{socketsKnown: true}
	for _, p := range ps {
		if p.Ended() {
			continue
		}
		files, sockets, known := openFiles(p.pid, links)
		h.files += files
		h.sockets += sockets
		h.socketsKnown = h.socketsKnown && known
	}
	return h
}

// openFiles counts the open files of a process, and the sockets among them while links,
// from which each file takes one, is not used up: known says whether that was enough.
func openFiles(pid int, links *int) (files, sockets uint64, known bool) {
	path := "/proc/" + strconv.Itoa(pid) + "/fd"
	dir, err := os.Open(path)
	if err != nil {
		return 0, 0, errors.Is(err, os.ErrNotExist) // it has ended
	}
	defer dir.Close()
	var st unix.Stat_t
	if unix.Fstat(int(dir.Fd()), &st) == nil && st.Size > int64(*links) { // the size is their number (Linux 6.2)
		return uint64(st.Size), 0, false
	}
	const atOnce = 1024
	link := make([]byte, 8)
	for {
		names, err := dir.Readdirnames(min(atOnce, *links+1))
		for _, name := range names {
			if files++; *links == 0 {
				return files, sockets, false
			}
			*links--
			n, err := unix.Readlinkat(int(dir.Fd()), name, link)
			if err == nil && strings.HasPrefix(string(link[:n]), "socket:") {
				sockets++
			}
		}
		if err != nil || len(names) == 0 {
			return files, sockets, true
		}
	}
}

// blockDevices are the samples of what was read and written, by block device.
func blockDevices(s *subject) []sample {
	if s.IO == nil {
		return nil
	}
	var out []sample
	for _, d := range s.IO.Devices {
		major, minor, _ := strings.Cut(d.Number, ":")
		name := deviceName(d.Number)
		out = append(out, sample{[]string{name, major, minor, "Read"}, d.ReadBytes}, sample{[]string{name, major, minor, "Write"}, d.WriteBytes})
	}
	return out
}

// deviceName returns the path of a block device as major:minor, "" when it is not known
// here.
func deviceName(number string) string {
	link, err := os.Readlink("/sys/dev/block/" + filepath.Base(number))
	if err != nil {
		return ""
	}
	return "/dev/" + filepath.Base(link)
}
