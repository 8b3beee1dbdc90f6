package openat2

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// tree makes a directory full of links, and returns it opened.
func tree(t *testing.T) int {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "top")
	for _, d := range []string{"usr/lib/deep", "etc"} {
		must(t, os.MkdirAll(filepath.Join(dir, d), 0o755))
	}
	must(t, os.WriteFile(filepath.Join(dir, "usr/lib/passwd"), []byte("x"), 0o644))
	must(t, os.WriteFile(filepath.Join(filepath.Dir(dir), "secret"), []byte("s"), 0o644))
	for name, target := range map[string]string{
		"etc/passwd": "../usr/lib/passwd", "etc/absolute": "/usr/lib/passwd", "etc/out": "../../../../secret",
		"etc/loop": "loop", "etc/a": "b", "etc/b": "a", "etc/none": "missing", "lib": "usr/lib",
		"usr/lib/deep/up": "..", "etc/dir": "../usr/lib/", "etc/file": "../usr/lib/passwd/", "etc/root": "/",
	} {
		must(t, os.Symlink(target, filepath.Join(dir, name)))
	}
	must(t, os.Symlink("l1", filepath.Join(dir, "l0")))
	for i := 1; i <= 41; i++ { // l2 leads over 40 links, l1 over 41
		must(t, os.Symlink(fmt.Sprintf("l%d", i+1), filepath.Join(dir, fmt.Sprintf("l%d", i))))
	}
	must(t, os.WriteFile(filepath.Join(dir, "l42"), nil, 0o644))
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

var paths = []string{
	"", ".", "..", "/", "//", "../..", "etc", "etc/", "/etc/passwd", "etc/passwd", "etc/passwd/", "etc/passwd/..",
	"etc/absolute", "etc/out", "etc/loop", "etc/a", "etc/none", "etc/none/x", "etc/missing", "lib/passwd", "lib/../usr",
	"lib/deep/up/passwd", "lib/deep/up/../lib/deep", "etc/dir", "etc/dir/passwd", "etc/dir/../../etc", "etc/file",
	"etc/root", "etc/root/etc/passwd", "usr/lib/passwd/x", "./usr/./lib//passwd", "etc/../../../etc/passwd",
	"l0", "l1", "l2", "l3", strings.Repeat("x/", 3000), strings.Repeat("a", 300), "etc/out/..", "../secret",
}

// TestWalk: the walk finds what the kernel finds, and fails with the same error.
func TestWalk(t *testing.T) {
	dir := tree(t)
	for _, s := range []scope{inRoot, beneath, noLinks} {
		for _, flags := range []uint64{unix.O_PATH, unix.O_RDONLY, unix.O_PATH | unix.O_DIRECTORY, unix.O_PATH | unix.O_NOFOLLOW} {
			for _, path := range paths {
				want, wantErr := kernel(s, dir, path, flags)
				got, err := walk(s, dir, path, flags)
				if err != wantErr || err == nil && ino(t, got) != ino(t, want) {
					t.Errorf("scope %#x flags %#x %.50q: %v, the kernel says %v", s, flags, path, err, wantErr)
				}
				if err == nil {
					unix.Close(got)
				}
				if wantErr == nil {
					unix.Close(want)
				}
			}
		}
	}
}

// kernel is openat2(2), repeated while something else on the machine is renamed.
func kernel(s scope, dir int, path string, flags uint64) (int, error) {
	if path == "" {
		path = "."
	}
	for {
		fd, err := once(dir, path, flags, uint64(s))
		if err != unix.EAGAIN {
			return fd, err
		}
	}
}

func ino(t *testing.T, fd int) [2]uint64 {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Fstat(fd, &st))
	return [2]uint64{st.Dev, st.Ino}
}

// TestBesideRenames: a path with ".." is found while something else renames without a
// pause, and the same path given to the kernel once is not.
func TestBesideRenames(t *testing.T) {
	dir := tree(t)
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(max(2, runtime.NumCPU())))
	defer busy(t)()
	gaveUp := 0
	tries := 0
	for ; tries < 500_000 && gaveUp < 10; tries++ {
		if fd, err := once(dir, "etc/passwd", unix.O_PATH, uint64(inRoot)); err == nil {
			unix.Close(fd)
		} else if err == unix.EAGAIN {
			gaveUp++
		}
		for _, open := range []func(int, string, uint64) (int, error){InRoot, Beneath} {
			fd, err := open(dir, "etc/passwd", unix.O_PATH)
			if err != nil {
				t.Fatal(err)
			}
			unix.Close(fd)
		}
	}
	t.Logf("the kernel gave up %d of %d times", gaveUp, tries)
	if gaveUp == 0 {
		t.Error("nothing was in the way: the renames do not work")
	}
}

// busy renames a file to and fro until the returned function is called.
func busy(t *testing.T) (stop func()) {
	dir, end, ended := t.TempDir(), make(chan struct{}), make(chan struct{})
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	must(t, os.WriteFile(a, nil, 0o644))
	go func() {
		defer close(ended)
		for {
			select {
			case <-end:
				return
			default:
				_, _ = os.Rename(a, b), os.Rename(b, a)
			}
		}
	}()
	return func() { close(end); <-ended }
}

// TestWalkIsBounded: links that multiply end in an error soon.
func TestWalkIsBounded(t *testing.T) {
	top := t.TempDir()
	must(t, os.Mkdir(filepath.Join(top, "d"), 0o755))
	must(t, os.Symlink(strings.Repeat("d/../", 800)+"d", filepath.Join(top, "m")))
	must(t, os.Symlink("m/../m/../m/../m/../m/../m/../m", filepath.Join(top, "n")))
	fd, err := unix.Open(top, unix.O_PATH|unix.O_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(fd)
	if _, err := walk(inRoot, fd, "n", unix.O_PATH); err != unix.ENAMETOOLONG {
		t.Errorf("%v, want ENAMETOOLONG", err)
	}
}
