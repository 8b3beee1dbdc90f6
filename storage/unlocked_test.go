package storage

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// TestStagingUnlocked: the lock of a layer's directory counts while its file is there, and
// the helper that is to unpack there hears of one that does not.
func TestStagingUnlocked(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "tempdirs")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	lock, err := os.Create(filepath.Join(dir, "lock-1"))
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if stagingUnlocked() {
		t.Error("a lock whose file is there does not count")
	}
	if err := os.Remove(lock.Name()); err != nil {
		t.Fatal(err)
	}
	if !stagingUnlocked() {
		t.Error("a lock whose file was removed counts")
	}
	_, err = readLowers(writeFile(t, filepath.Join(t.TempDir(), "lowers"), unlockedLine+"\n"))
	if err == nil || !unpackedUnlocked(fmt.Errorf("unpacking failed (error: exit status 1; output: %v)", err)) {
		t.Errorf("the helper: %v", err)
	}
}
