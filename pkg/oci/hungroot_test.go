package oci

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// hangingRoot mounts a root file system by a fuse-overlayfs, which hang stops.
func hangingRoot(t *testing.T, lower string) (root string, hang func()) {
	t.Helper()
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skipf("no FUSE on this machine: %v", err)
	}
	dir := t.TempDir()
	root = filepath.Join(dir, "root")
	for _, name := range []string{"upper", "work", "root"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command("fuse-overlayfs", "-f", "-o", fmt.Sprintf("lowerdir=%s,upperdir=%s/upper,workdir=%s/work", lower, dir, dir), root)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = unix.Unmount(root, unix.MNT_DETACH)
		_ = cmd.Wait()
	})
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
		if mounts, err := os.ReadFile("/proc/self/mounts"); strings.Contains(string(mounts), " "+root+" fuse") {
			break
		} else if time.Now().After(deadline) {
			t.Fatalf("not mounted: %s, %v", mounts, err)
		}
	}
	return root, func() {
		if err := cmd.Process.Signal(unix.SIGSTOP); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cmd.Process.Signal(unix.SIGCONT) })
	}
}

// readAnew reads a file from its file system: the kernel does not know its atime(5) any more
// then, and asks for that when all attributes are wanted.
func readAnew(t *testing.T, path string) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, f); err != nil {
		t.Fatal(err)
	}
}

// TestExecWhileRootHangs: an exec ends in time although the file system that the container's
// own program is on does not answer any more.
func TestExecWhileRootHangs(t *testing.T) {
	e := executor(t)
	root, hang := hangingRoot(t, rootfs(t, e))
	b := create(t, e, container{args: sh("while :; do sleep 0.1; done"), change: func(s *specs.Spec) { s.Root.Path = root }}).start()
	if _, err := b.exec(0, "/bin/true"); err != nil {
		t.Fatal(err)
	}
	readAnew(t, filepath.Join(root, "bin/busybox"))
	hang()
	ended := make(chan error, 1)
	go func() {
		_, err := b.exec(200*time.Millisecond, "/bin/true")
		ended <- err
	}()
	select {
	case err := <-ended:
		if !errors.Is(err, ErrTimeout) {
			t.Errorf("%v, want %v", err, ErrTimeout)
		}
	case <-time.After(30 * time.Second):
		t.Error("it has not ended")
	}
}

// TestImageOfRecords: what a server before this one has stored of an init is compared with
// what this one sees.
func TestImageOfRecords(t *testing.T) {
	var st unix.Stat_t
	if err := unix.Stat("/proc/self/exe", &st); err != nil {
		t.Fatal(err)
	}
	now, err := imageOf(os.Getpid())
	if err != nil || now.Dev != uint64(st.Dev) || now.Ino != st.Ino {
		t.Errorf("%+v, %v; want %d and %d", now, err, st.Dev, st.Ino)
	}
}
