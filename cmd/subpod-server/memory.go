package main

import (
	"bytes"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// forgetStart takes the pages of the program's own code out of the process's memory.
// Most of what a start has touched, the initialization of all packages and what the kernel
// maps around it, is not needed again; what is comes back from the page cache, without the
// disk. Best effort. Code is never written, so nothing is lost; data is left alone.
func forgetStart() {
	exe, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		return
	}
	for line := range bytes.Lines(maps) {
		var begin, end uintptr
		var mode string
		if _, err := fmt.Sscanf(string(line), "%x-%x %s", &begin, &end, &mode); err == nil && mode == "r-xp" && bytes.Contains(line, []byte(exe)) {
			_, _, _ = unix.Syscall(unix.SYS_MADVISE, begin, end-begin, unix.MADV_DONTNEED)
		}
	}
}
