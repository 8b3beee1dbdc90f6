package netns

import (
	"errors"
	"os"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestProcSys: files are those of the thread's own namespace, by each of several mounts,
// and by /proc where no mount can be made.
func TestProcSys(t *testing.T) {
	root, err := mountProc()
	if err != nil {
		t.Fatalf("a mount of /proc: %v", err)
	}
	root.Close()
	const name = "net/ipv4/ip_default_ttl"
	refused := errors.New("refused")
	calls := 0
	for what, p := range map[string]*procSys{
		"mounts":  {mount: mountProc},
		"refused": {mount: func() (*os.File, error) { return nil, refused }},
		// A thread that has become the root of a pod's user namespace cannot mount.
		"refused once": {mount: func() (*os.File, error) {
			if calls++; calls == 1 {
				return nil, refused
			}
			return mountProc()
		}},
	} {
		mounts := map[*os.File]bool{}
		for i := range 3 * maxLookups {
			want := strconv.Itoa(1 + i%200)
			err := onThread(func() error {
				if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
					return err
				}
				f, err := p.open(name)
				if err != nil {
					return err
				}
				defer f.Close()
				if _, err := f.WriteString(want); err != nil {
					return err
				}
				got, err := os.ReadFile("/proc/sys/" + name)
				if err == nil && strings.TrimSpace(string(got)) != want {
					t.Errorf("%s: file %d: %s is %q, want %s", what, i, name, got, want)
				}
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			mounts[p.root] = true
		}
		if want := map[string]int{"mounts": 3, "refused": 1, "refused once": 2}[what]; len(mounts) != want {
			t.Errorf("%s: %d, want %d", what, len(mounts), want)
		}
		if p.root != nil {
			p.root.Close()
		}
	}
}
