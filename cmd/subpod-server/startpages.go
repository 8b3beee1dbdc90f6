package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
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
	maps, err := os.Open("/proc/self/smaps")
	if err != nil {
		return err
	}
	defer maps.Close()
	parts, err := filePages(maps, exe)
	errs := []error{err}
	for _, p := range parts {
		if _, _, errno := unix.Syscall(unix.SYS_MADVISE, p.start, p.end-p.start, unix.MADV_DONTNEED); errno != 0 {
			errs = append(errs, fmt.Errorf("madvise %#x-%#x: %w", p.start, p.end, errno))
		}
	}
	return errors.Join(errs...)
}

// part is a range of addresses.
type part struct{ start, end uintptr }

// filePages returns the parts of a program, in its /proc/PID/smaps, that have the file's
// pages only. One that can be read only may have others: what was relocated at the start of
// a program that is linked so.
func filePages(smaps io.Reader, exe string) (parts []part, err error) {
	var at part
	candidate := false
	lines := bufio.NewScanner(smaps)
	for lines.Scan() {
		line := lines.Text()
		if value, ok := strings.CutPrefix(line, "Anonymous:"); ok {
			if candidate && strings.TrimSpace(value) == "0 kB" {
				parts = append(parts, at)
			}
			candidate = false
			continue
		}
		if start, end, ok := readOnlyPart(line, exe); ok {
			at, candidate = part{start, end}, true
		}
	}
	return parts, lines.Err()
}

// readOnlyPart returns the range of a mapping's first line in smaps that is a part of the
// program and can't be written.
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
