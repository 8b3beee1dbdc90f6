package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// startPagesDelay is how long a server has served before it gives back the pages that
// only its start needed.
const startPagesDelay = 2 * time.Second

// releaseStartPages gives back the pages of the program's own code and constants: the
// start goes through most of them once, many more than are used ever again. They are those
// of the file, and come back from the page cache as they are used.
func releaseStartPages() error {
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	maps, err := os.Open("/proc/self/maps")
	if err != nil {
		return err
	}
	defer maps.Close()
	var errs []error
	for lines := bufio.NewScanner(maps); lines.Scan(); {
		start, end, ok := readOnlyPart(lines.Text(), exe)
		if !ok {
			continue
		}
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, start, end-start, unix.MADV_DONTNEED); errno != 0 {
			errs = append(errs, fmt.Errorf("madvise %#x-%#x: %w", start, end, errno))
		}
	}
	return errors.Join(errs...)
}

// readOnlyPart returns the range of a line of /proc/self/maps that is a part of the program
// which nothing can have changed.
func readOnlyPart(line, exe string) (start, end uintptr, ok bool) {
	var perms string
	if n, err := fmt.Sscanf(line, "%x-%x %s", &start, &end, &perms); n < 3 || err != nil {
		return 0, 0, false
	}
	if perms != "r-xp" && perms != "r--p" || !strings.HasSuffix(line, " "+exe) {
		return 0, 0, false
	}
	return start, end, true
}
