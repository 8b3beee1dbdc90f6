package subpath

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/tests/nstest"
)

func TestMain(m *testing.M) { os.Exit(nstest.Main(m, nstest.Options{IDs: 65536})) }

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// newVolume makes a volume beside a directory that must stay out of reach.
func newVolume(t *testing.T) (volume, outside string) {
	t.Helper()
	top := t.TempDir()
	volume, outside = filepath.Join(top, "volume"), filepath.Join(top, "outside")
	must(t, os.Mkdir(volume, 0o777))
	must(t, os.Chmod(volume, 0o777))
	must(t, os.Mkdir(outside, 0o700))
	must(t, os.WriteFile(filepath.Join(outside, "secret"), []byte("of the user"), 0o600))
	return volume, outside
}

func TestOpen(t *testing.T) {
	volume, outside := newVolume(t)
	at := func(name string) string { return filepath.Join(volume, name) }
	must(t, os.MkdirAll(at("a/b"), 0o755))
	must(t, os.WriteFile(at("a/file"), []byte("x"), 0o644))
	must(t, os.Symlink("a", at("inside")))
	must(t, os.Symlink("../a", at("a/up")))
	must(t, os.Symlink(outside, at("absolute")))
	must(t, os.Symlink("../outside", at("relative")))
	must(t, os.Symlink("/", at("root")))
	must(t, os.Symlink("/proc/self/cwd", at("magic")))
	must(t, os.Symlink("nowhere", at("dangling")))
	must(t, os.Symlink("loop", at("loop")))

	for sub, want := range map[string]string{
		"": "", ".": "", "a/b": "a/b", "a//b/": "a/b", "a/file": "a/file", "inside/b": "a/b", "a/up/b": "a/b",
		"new": "new", "a/new/deep": "a/new/deep", "inside/made": "a/made",
	} {
		f, err := Open(volume, sub)
		if err != nil {
			t.Errorf("%q: %v", sub, err)
			continue
		}
		if got := pathOf(t, f); got != at(want) {
			t.Errorf("%q is %s, want %s", sub, got, at(want))
		}
		f.Close()
	}
	for sub, want := range map[string]error{
		"..": ErrEscapes, "a/../..": ErrEscapes, "a/../b": ErrEscapes, outside: ErrEscapes, "a\x00b": ErrEscapes,
		"absolute": ErrEscapes, "absolute/secret": ErrEscapes, "absolute/new": ErrEscapes,
		"relative": ErrEscapes, "relative/secret": ErrEscapes, "relative/new/deep": ErrEscapes,
		"root": ErrEscapes, "root/etc": ErrEscapes, "magic": ErrEscapes,
		"dangling": ErrUnusable, "dangling/new": ErrUnusable, "loop": ErrUnusable, "loop/new": ErrUnusable,
		"a/file/x": ErrUnusable,
	} {
		if f, err := Open(volume, sub); !errors.Is(err, want) {
			t.Errorf("%q: %v, want %v", sub, err, want)
			if f != nil {
				f.Close()
			}
		}
	}
	if left, err := os.ReadDir(outside); err != nil || len(left) != 1 {
		t.Errorf("outside of the volume: %v, %v", left, err)
	}
	if _, err := os.Lstat(at("nowhere")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the target of a dangling link was made: %v", err)
	}
}

func pathOf(t *testing.T, f *os.File) string {
	t.Helper()
	path, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	must(t, err)
	return path
}

// TestOpenMode checks that new directories have the volume's mode, as those of
// the kubelet have it: any user of the containers may write to an emptyDir.
func TestOpenMode(t *testing.T) {
	defer unix.Umask(unix.Umask(0o077))
	volume, _ := newVolume(t)
	for _, mode := range []os.FileMode{0o777, 0o750} {
		must(t, os.Chmod(volume, mode))
		sub := mode.String() + "/deep"
		f, err := Open(volume, sub)
		must(t, err)
		f.Close()
		for _, dir := range []string{sub, filepath.Dir(sub)} {
			if info, err := os.Stat(filepath.Join(volume, dir)); err != nil || info.Mode().Perm() != mode {
				t.Errorf("%s: %v, %v; want %v", dir, info.Mode(), err, mode)
			}
		}
	}
}

// TestExchange exchanges the path with a link that leads out, all the while it is
// opened, created and mounted. On a busy machine the one that exchanges may not run for
// long: both have to be met.
func TestExchange(t *testing.T) {
	volume, outside := newVolume(t)
	x, link := filepath.Join(volume, "x"), filepath.Join(volume, "link")
	must(t, os.Mkdir(x, 0o755))
	must(t, os.Symlink("../outside", link))
	stop := make(chan struct{})
	var attacker sync.WaitGroup
	attacker.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				_ = unix.Renameat2(unix.AT_FDCWD, x, unix.AT_FDCWD, link, unix.RENAME_EXCHANGE)
			}
		}
	})
	defer attacker.Wait()
	defer close(stop)
	mounts := filepath.Join(t.TempDir(), "mounts")
	inside, refused := 0, 0
	for end := time.Now().Add(time.Minute); inside+refused < 3000 || inside == 0 || refused == 0; {
		if time.Now().After(end) {
			t.Fatalf("mounted %d times, refused %d times: there was no race", inside, refused)
		}
		path, err := Mount(mounts, "0", volume, "x/new")
		if errors.Is(err, ErrEscapes) || errors.Is(err, ErrUnusable) {
			refused++
			continue
		}
		must(t, err)
		inside++
		if same(t, path, outside) {
			t.Fatal("a link led out of the volume")
		}
		must(t, Release(mounts))
		// What is missing is made: that is part of the race.
		_ = os.Remove(filepath.Join(x, "new"))
		_ = os.Remove(filepath.Join(link, "new"))
	}
	if left, err := os.ReadDir(outside); err != nil || len(left) != 1 {
		t.Errorf("outside of the volume: %v, %v", left, err)
	}
}

func same(t *testing.T, a, b string) bool {
	t.Helper()
	x, err := os.Stat(a)
	must(t, err)
	y, err := os.Stat(b)
	must(t, err)
	return os.SameFile(x, y)
}

// TestMount checks that a mount shows what the path was when it was made, and
// that Release removes mounts and no content.
func TestMount(t *testing.T) {
	volume, outside := newVolume(t)
	must(t, os.MkdirAll(filepath.Join(volume, "data/sub"), 0o755))
	must(t, os.WriteFile(filepath.Join(volume, "data/file"), []byte("content"), 0o644))
	must(t, unix.Mount("below", filepath.Join(volume, "data/sub"), "tmpfs", 0, ""))
	defer func() { must(t, unix.Unmount(filepath.Join(volume, "old/sub"), 0)) }()
	must(t, os.WriteFile(filepath.Join(volume, "data/sub/deep"), []byte("below"), 0o644))

	all := t.TempDir()
	dir := filepath.Join(all, "container")
	path, err := Mount(dir, "0", volume, "data")
	must(t, err)
	file, err := Mount(dir, "1", volume, "data/file")
	must(t, err)
	// Too late for an attacker:
	must(t, os.Rename(filepath.Join(volume, "data"), filepath.Join(volume, "old")))
	must(t, os.Symlink(outside, filepath.Join(volume, "data")))
	for name, want := range map[string]string{
		filepath.Join(path, "file"): "content", filepath.Join(path, "sub/deep"): "below", file: "content",
	} {
		if got, err := os.ReadFile(name); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	must(t, ReleaseAll(all))
	must(t, Release(dir)) // again
	if _, err := os.Lstat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is left: %v", dir, err)
	}
	if got, err := os.ReadFile(filepath.Join(volume, "old/file")); err != nil || string(got) != "content" {
		t.Errorf("the volume's file: %q, %v", got, err)
	}
	info, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	if strings.Contains(string(info), dir) {
		t.Error("mounts are left")
	}
}

// TestReleaseKeepsContent checks that Release deletes no files where a mount is
// already gone, or never was.
func TestReleaseKeepsContent(t *testing.T) {
	dir := t.TempDir()
	kept := filepath.Join(dir, "0/file")
	must(t, os.Mkdir(filepath.Dir(kept), 0o755))
	must(t, os.WriteFile(kept, nil, 0o644))
	if err := Release(dir); err == nil {
		t.Error("a directory that is not empty is no error")
	}
	if _, err := os.Stat(kept); err != nil {
		t.Error(err)
	}
}
