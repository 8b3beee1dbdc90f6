package storage

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// When all that the user has is out of memory, the kernel takes back the pages of programs
// and reads them again, for as long as that frees anything, before it ends a process.
// fuse-overlayfs has to read a container's program then, and waits for pages of its own: of
// two such waits, each takes from the other. Pages that are locked stay.

// resident is files whose pages are in memory, and stay there until release or the end of
// this process.
type resident [][]byte

// lockFiles maps files and locks their pages: with an error, all that can be.
func lockFiles(paths []string) (r resident, err error) {
	if len(paths) == 0 {
		return nil, errors.New("its files are not known")
	}
	var errs []error
	for _, path := range paths {
		pages, err := mapFile(path)
		if err != nil {
			errs = append(errs, fmt.Errorf("map %s: %w", path, err))
			continue
		}
		if err := unix.Mlock(pages); err != nil {
			_ = unix.Munmap(pages)
			errs = append(errs, fmt.Errorf("lock the %d bytes of %s: %w", len(pages), path, err))
			continue
		}
		r = append(r, pages)
	}
	return r, errors.Join(errs...)
}

func (r resident) release() {
	for _, pages := range r {
		_ = unix.Munmap(pages)
	}
}

// mapFile maps the regular file at path. Its pages must not be read: the file may be cut off.
func mapFile(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close() // the mapping stays
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, unix.EINVAL
	}
	return unix.Mmap(int(f.Fd()), 0, int(st.Size()), unix.PROT_READ, unix.MAP_SHARED)
}

func memlock() uint64 {
	var limit unix.Rlimit
	_ = unix.Getrlimit(unix.RLIMIT_MEMLOCK, &limit)
	return limit.Cur
}

// mappedFiles returns the files that process pid and its children have mapped: programs and
// libraries. (A script that does not exec the program has it as a child.)
func mappedFiles(pid int) ([]string, error) {
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		return nil, err
	}
	var files []string
	for _, process := range append(strings.Fields(string(children)), strconv.Itoa(pid)) {
		maps, err := os.ReadFile("/proc/" + process + "/maps")
		if err != nil {
			return nil, err
		}
		for line := range strings.Lines(string(maps)) { // "ADDRESSES FLAGS OFFSET DEVICE INODE  /PATH"
			if at := strings.Index(line, " /"); at >= 0 {
				files = append(files, strings.TrimSuffix(line[at+1:], "\n"))
			}
		}
	}
	slices.Sort(files)
	return slices.Compact(files), nil
}
