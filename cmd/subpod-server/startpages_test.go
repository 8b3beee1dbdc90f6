package main

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

func TestReadOnlyPart(t *testing.T) {
	const exe = "/usr/bin/subpod-server"
	for line, want := range map[string]bool{
		"00400000-01193000 r-xp 00000000 08:01 123                        /usr/bin/subpod-server": true,
		"01193000-01d00000 r--p 00d93000 08:01 123                        /usr/bin/subpod-server": true,
		"01d00000-01db0000 rw-p 01900000 08:01 123                        /usr/bin/subpod-server": false,
		"00400000-01193000 r-xp 00000000 08:01 124                        /usr/bin/other":         false,
		"7ffd1000-7ffd2000 r-xp 00000000 00:00 0                          [vdso]":                 false,
		"nonsense": false,
	} {
		if _, _, ok := readOnlyPart(line, exe); ok != want {
			t.Errorf("%q: %v, want %v", line, ok, want)
		}
	}
}

// What was relocated is not in the file: the program would be broken without it.
func TestFilePages(t *testing.T) {
	const smaps = `00400000-01193000 r-xp 00000000 08:01 123                        /usr/bin/subpod-server
Rss:                4096 kB
Anonymous:             0 kB
01193000-01d00000 r--p 00d93000 08:01 123                        /usr/bin/subpod-server
Rss:                 120 kB
Anonymous:            64 kB
01d00000-01db0000 rw-p 01900000 08:01 123                        /usr/bin/subpod-server
Anonymous:             0 kB
01db0000-01dc0000 r--p 01900000 08:01 123                        /usr/bin/subpod-server
Anonymous:             0 kB
`
	parts, err := filePages(strings.NewReader(smaps), "/usr/bin/subpod-server")
	if want := []part{{0x400000, 0x1193000}, {0x1db0000, 0x1dc0000}}; err != nil || !slices.Equal(parts, want) {
		t.Errorf("%x, %v; want %x", parts, err, want)
	}
}

// A process that has given its pages back runs on, with fewer of them.
func TestReleaseStartPages(t *testing.T) {
	before := residentFile(t)
	if err := releaseStartPages(); err != nil {
		t.Fatal(err)
	}
	if after := residentFile(t); after >= before {
		t.Errorf("%d KiB of files are resident, %d before", after, before)
	}
}

// residentFile returns RssFile of this process, in KiB.
func residentFile(t *testing.T) (kib int) {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if value, ok := strings.CutPrefix(line, "RssFile:"); ok {
			if _, err := fmt.Sscan(value, &kib); err != nil {
				t.Fatal(err)
			}
			return kib
		}
	}
	t.Fatal("no RssFile")
	return 0
}
