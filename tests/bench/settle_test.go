package bench

import (
	"archive/tar"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// ext4 without a journal does not give an inode away that was freed within the last
// minute, or six while its block of 16 inodes waits to be written, and looks at each of them,
// for each file that is made: 7,200 files then take two seconds where they took a tenth of
// one. What unpacks images would pay for what was removed before it. So nothing is removed
// between pulls that are compared, and settle is called before the first.

// recently is how long ext4 remembers what was removed, and some more: files that are made
// afterwards in the same blocks make these wait to be written again.
const recently = 365 * time.Second

// settle waits until nothing that was removed before slows down who makes files in dir.
func settle(t *testing.T, dir string) {
	t.Helper()
	if keepsFreed(t, dir) {
		unix.Sync()
		time.Sleep(recently)
	}
}

// keepsFreed reports whether the file system of dir is an ext4 without a journal.
func keepsFreed(t *testing.T, dir string) bool {
	t.Helper()
	var fs unix.Statfs_t
	var st unix.Stat_t
	if err := unix.Statfs(dir, &fs); err != nil {
		t.Fatal(err)
	}
	if err := unix.Stat(dir, &st); err != nil {
		t.Fatal(err)
	}
	if fs.Type != unix.EXT4_SUPER_MAGIC {
		return false
	}
	disk, err := os.Readlink(fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev)))
	if err != nil {
		return false
	}
	journals, _ := filepath.Glob("/proc/fs/jbd2/" + filepath.Base(disk) + "-*")
	return len(journals) == 0
}

// variants returns n images that differ in one file of each layer, so that none has a
// layer of another.
func variants(t *testing.T, layers [][]byte, n int) [][][]byte {
	t.Helper()
	images := make([][][]byte, n)
	for i := range images {
		for j, layer := range layers {
			var first bytes.Buffer
			if err := tar.NewWriter(&first).WriteHeader(&tar.Header{Name: fmt.Sprintf("variant%d-%d", i, j), Mode: 0o644}); err != nil {
				t.Fatal(err)
			}
			// A gzip file may have several members.
			images[i] = append(images[i], append(compressed(t, first.Bytes()), layer...))
		}
	}
	return images
}
