package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/subpod/subpod/pkg/metrics"
)

func TestParseTraffic(t *testing.T) {
	const text = `Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:     100       1    0    0    0     0          0         0      100       1    0    0    0     0       0          0
  tap0:       1       2    3    4    0     0          0         0        5       6    7    8    0     0       0          0
`
	got, ok := parseTraffic(text, "tap0")
	want := metrics.Traffic{Received: metrics.Flow{Bytes: 1, Packets: 2, Errors: 3, Dropped: 4}, Sent: metrics.Flow{Bytes: 5, Packets: 6, Errors: 7, Dropped: 8}}
	if !ok || got != want {
		t.Errorf("%+v, %v", got, ok)
	}
	for _, bad := range []string{"", "tap0: 1 2", text[:200]} {
		if _, ok := parseTraffic(bad, "tap0"); ok {
			t.Errorf("%q has traffic", bad)
		}
	}
}

// TestHelperProcesses: helpers are told by their names, in this mount namespace. Others of
// the same names may come and go meanwhile.
func TestHelperProcesses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "conmon")
	if err := os.WriteFile(path, []byte("#!/bin/sh\necho here\nread _\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path)
	in, err1 := cmd.StdinPipe()
	out, err2 := cmd.StdoutPipe()
	if err := errors.Join(err1, err2, cmd.Start()); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Wait() }()
	defer in.Close()
	if _, err := io.ReadFull(out, make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	if got := helperProcesses(); got["conmon"] < 1 || len(got) != len(helpers) {
		t.Errorf("%v, with a conmon", got)
	}
	mounts, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		t.Fatal(err)
	}
	dir := fmt.Sprint("/proc/", cmd.Process.Pid)
	for _, c := range []struct{ dir, mounts, want string }{
		{dir, mounts, "conmon"}, {dir, "mnt:[1]", ""}, {"/proc/self", mounts, ""}, {"/proc/none", mounts, ""},
	} {
		if got := helperOf(c.dir, c.mounts); got != c.want {
			t.Errorf("%s beside mounts %s is %q, want %q", c.dir, c.mounts, got, c.want)
		}
	}
}
