package subpath

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestAttachSharedAtOnce: containers that share a mount and come at once get the same
// one, and none of them an error.
func TestAttachSharedAtOnce(t *testing.T) {
	top := t.TempDir()
	dir := filepath.Join(top, "shared")
	for round := range 50 {
		volume := filepath.Join(top, "volume")
		must(t, os.Mkdir(volume, 0o755)) // another one each time, by the same name
		const containers = 8
		type result struct {
			target string
			err    error
		}
		results, start := make(chan result), make(chan struct{})
		for range containers {
			go func() {
				fd, err := unix.OpenTree(unix.AT_FDCWD, volume, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
				if err != nil {
					results <- result{"", err}
					return
				}
				tree := os.NewFile(uintptr(fd), volume)
				defer tree.Close()
				<-start
				target, err := AttachShared(dir, volume, tree)
				results <- result{target, err}
			}()
		}
		close(start)
		targets := map[string]bool{}
		for range containers {
			r := <-results
			must(t, r.err)
			targets[r.target] = true
		}
		mounts, err := os.ReadFile("/proc/self/mountinfo")
		must(t, err)
		if n := strings.Count(string(mounts), " "+dir+"/"); n != 1 || len(targets) != 1 {
			t.Fatalf("round %d: %d mounts at %v", round, n, targets)
		}
		must(t, os.Rename(volume, filepath.Join(top, "old")))
		must(t, os.Remove(filepath.Join(top, "old")))
	}
	must(t, Release(dir))
}
