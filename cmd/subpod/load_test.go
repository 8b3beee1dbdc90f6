package main

import (
	"io"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// Standard input is a socket under sshd, inetd and many programs that start others. No
// path opens a socket.
func TestStandardInputByItsPath(t *testing.T) {
	for _, path := range []string{"/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"} {
		t.Run(path, func(t *testing.T) {
			pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			peer, stdin := os.NewFile(uintptr(pair[0]), "peer"), os.NewFile(uintptr(pair[1]), "stdin")
			if _, err := peer.WriteString("archive"); err != nil {
				t.Fatal(err)
			}
			peer.Close()
			before := os.Stdin
			os.Stdin = stdin
			defer func() { os.Stdin = before }()
			if !own(path) {
				t.Fatalf("%s is sent to the daemon by its name", path)
			}
			f, err := openOwn(path)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if got, err := io.ReadAll(f); err != nil || string(got) != "archive" {
				t.Errorf("%s: read %q, %v, want the standard input", path, got, err)
			}
		})
	}
}
