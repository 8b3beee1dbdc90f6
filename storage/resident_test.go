package storage

import (
	"bytes"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// What a fuse-overlayfs has mapped is locked as a whole in the process that has the store
// open, and no longer.
func TestResident(t *testing.T) {
	s, err := Open(t.Context(), testOptions(t, t.TempDir(), DriverFuse))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		closeStore(t, s)
		if locked := lockedFiles(t); len(locked) > 0 {
			t.Errorf("locked after Close: %v", locked)
		}
	})
	image := loadInto(t, s, "localhost/sample:latest", sample(t, "resident"))
	if _, err := s.Rootfs.Create(t.Context(), RootfsSpec{ID: "resident", ImageID: image}); err != nil {
		t.Fatal(err)
	}
	locked, want := lockedFiles(t), mappedBy(t, s.Info().MountProgram)
	var sum int64
	for _, size := range want {
		sum += size
	}
	if limit := memlock(); limit < uint64(sum) {
		t.Skipf("RLIMIT_MEMLOCK is %d here, and %d bytes are to be locked", limit, sum)
	}
	for file, size := range want {
		if locked[file] < size {
			t.Errorf("%s: %d bytes are locked, want %d", file, locked[file], size)
		}
	}
}

// Where a process may lock almost nothing, the log says so, and all else works.
func TestResidentLimit(t *testing.T) {
	var before unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &before); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{Cur: 4096, Max: before.Max}); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &before); err != nil {
			t.Error(err)
		}
	}()
	var log bytes.Buffer
	o := testOptions(t, t.TempDir(), DriverFuse)
	o.Log = slog.New(slog.NewTextHandler(&log, nil))
	openStore(t, o)
	if !strings.Contains(log.String(), "limit=4096") {
		t.Errorf("the log does not name the limit: %s", &log)
	}
}

// What can't be mapped is an error, and nothing waits for it.
func TestLockFilesOdd(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{fifo, dir, filepath.Join(dir, "none"), writeFile(t, filepath.Join(dir, "empty"), "")} {
		if r, err := lockFiles([]string{path}); err == nil || len(r) > 0 {
			t.Errorf("%s: %v %v, want an error", path, r, err)
		}
	}
	if _, err := lockFiles(nil); err == nil {
		t.Error("no files: no error")
	}
	if _, err := mappedFiles(1 << 30); err == nil {
		t.Error("no process: no error")
	}
}

// mappedBy returns which files a running process of program has mapped, and their sizes.
func mappedBy(t *testing.T, program string) map[string]int64 {
	t.Helper()
	program, err := filepath.EvalSymlinks(program)
	if err != nil {
		t.Fatal(err)
	}
	links, err := filepath.Glob("/proc/[0-9]*/exe")
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]int64{}
	for _, link := range links {
		if exe, err := os.Readlink(link); err != nil || exe != program {
			continue
		}
		smaps, err := os.ReadFile(filepath.Join(filepath.Dir(link), "smaps"))
		if err != nil {
			continue // it has ended
		}
		for line := range strings.Lines(string(smaps)) {
			if f := strings.Fields(line); len(f) == 6 && filepath.IsAbs(f[5]) {
				st, err := os.Stat(f[5])
				if err != nil {
					t.Fatal(err)
				}
				files[f[5]] = st.Size()
			}
		}
	}
	if len(files) == 0 {
		t.Fatalf("%s has mapped %v, want at least the program", program, files)
	}
	return files
}

// lockedFiles returns how many bytes of which files this process has locked.
func lockedFiles(t *testing.T) map[string]int64 {
	t.Helper()
	smaps, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	locked := map[string]int64{}
	var file string
	var size int64
	for line := range strings.Lines(string(smaps)) {
		switch f := strings.Fields(line); {
		case f[0] == "Size:":
			if size, err = strconv.ParseInt(f[1], 10, 64); err != nil {
				t.Fatal(err)
			}
		case f[0] == "VmFlags:" && slices.Contains(f, "lo"):
			locked[file] += size << 10
		case !strings.HasSuffix(f[0], ":"): // a mapping's first line
			file = f[len(f)-1]
		}
	}
	return locked
}
