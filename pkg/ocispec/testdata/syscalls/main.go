// Syscalls makes some system calls and prints the error number of each: what a
// seccomp filter lets through is seen from inside.
package main

import (
	"fmt"
	"runtime"
	"syscall"
)

func main() {
	personality, clone, unshare, keyctl, clone3, socket, mount, bogus, getpid, mkdir := numbers()
	calls := []struct {
		name    string
		nr      uintptr
		a, b, c uintptr
	}{
		{"personality 0", personality, 0, 0, 0},
		{"personality query", personality, 0xffffffff, 0, 0},
		{"personality UNAME26", personality, 0x0020000, 0, 0},
		{"personality back", personality, 0, 0, 0},
		{"personality NO_RANDOMIZE", personality, 0x0040000, 0, 0},
		{"clone NEWUSER", clone, syscall.CLONE_NEWUSER | syscall.CLONE_THREAD, 0, 0},
		{"unshare NEWUSER", unshare, syscall.CLONE_NEWUSER, 0, 0},
		{"keyctl", keyctl, 0, 0, 0},
		{"clone3", clone3, 0, 0, 0},
		{"socket AF_UNIX", socket, 1, 1, 0},
		{"socket AF_ALG", socket, 38, 5, 0},
		{"socket AF_VSOCK", socket, 40, 1, 0},
		{"socket AF_AX25", socket, 3, 1, 0},
		{"socket AF_APPLETALK", socket, 5, 1, 0},
		{"socket AF_CAIF", socket, 37, 1, 0},
		{"mount", mount, 0, 0, 0},
		{"unknown", bogus, 0, 0, 0},
		{"getpid", getpid, 0, 0, 0},
		{"mkdir", mkdir, 0, 0, 0},
	}
	if runtime.GOARCH == "amd64" {
		const x32 = 0x40000000
		calls = append(calls, struct {
			name    string
			nr      uintptr
			a, b, c uintptr
		}{"x32 keyctl", x32 | keyctl, 0, 0, 0})
	}
	for _, c := range calls {
		_, _, errno := syscall.RawSyscall(c.nr, c.a, c.b, c.c)
		fmt.Printf("%s: %d\n", c.name, int(errno))
	}
}

func numbers() (personality, clone, unshare, keyctl, clone3, socket, mount, bogus, getpid, mkdir uintptr) {
	if runtime.GOARCH == "386" {
		return 136, 120, 310, 288, 435, 359, 21, 9999, 20, 39
	}
	return 135, 56, 272, 250, 435, 41, 165, 9999, 39, 83
}
