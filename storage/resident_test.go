package storage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
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
	dir := t.TempDir()
	s, err := Open(t.Context(), testOptions(t, dir, DriverFuse))
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

// What the store can be opened with, besides the program itself: scripts that become it, or
// wait for it, and one that leaves it in the background, whose files may be known or not.
func TestFuseOddPrograms(t *testing.T) {
	real, err := exec.LookPath("fuse-overlayfs")
	if err != nil {
		t.Fatal(err)
	}
	if real, err = filepath.EvalSymlinks(real); err != nil {
		t.Fatal(err)
	}
	for name, script := range map[string]string{
		"exec":       `exec ` + real + ` "$@"`,
		"child":      real + ` "$@"; exit $?`,
		"background": `exec ` + real + ` "$1" "$2" "$3"`,
	} {
		t.Run(name, func(t *testing.T) {
			o := testOptions(t, t.TempDir(), DriverFuse)
			o.MountProgram = writeScript(t, script)
			s := openStore(t, o)
			if files := s.layers.driver.fuseFiles; name != "background" && !slices.Contains(files, real) {
				t.Errorf("its files are %q, without %s", files, real)
			}
		})
	}
}

// A program that refuses the kernel's first request, and lives on, has nothing waited for.
func TestFuseRefuses(t *testing.T) {
	o := testOptions(t, t.TempDir(), DriverFuse)
	o.MountProgram = writeScript(t, `dd bs=1M count=1 of=/dev/null <&3 2>/dev/null
printf '\020\000\000\000\373\377\377\377\002\000\000\000\000\000\000\000' >&3 # fuse_out_header: EIO
exec cat <&3`)
	s, err := Open(t.Context(), o)
	if err == nil {
		closeStore(t, s)
	}
	if !errors.Is(err, ErrNotUsable) || !errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v, want ErrNotUsable and what statfs says, at once", err)
	}
	wantNoLeaks(t, o.Root)
}

// A program that shows what a layer has deleted is refused.
func TestFuseShowsDeleted(t *testing.T) {
	o := testOptions(t, t.TempDir(), DriverFuse)
	o.MountProgram = writeScript(t, `exec fuse-overlayfs "$1" "$(echo "$2" | sed 's,:[^:]*/middle,,')" "$3" "$4"`)
	s, err := Open(t.Context(), o)
	if err == nil {
		closeStore(t, s)
	}
	if !errors.Is(err, ErrNotUsable) || !strings.Contains(fmt.Sprint(err), "a layer has deleted") {
		t.Errorf("%v, want ErrNotUsable and why", err)
	}
	wantNoLeaks(t, o.Root)
}

func writeScript(t *testing.T, script string) string {
	t.Helper()
	path := writeFile(t, filepath.Join(t.TempDir(), "script"), "#!/bin/sh\n"+script+"\n")
	if err := os.Chmod(path, 0o755); err != nil {
		t.Fatal(err)
	}
	return path
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
