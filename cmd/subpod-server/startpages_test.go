package main

import (
	"fmt"
	"os"
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
