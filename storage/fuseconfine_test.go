package storage

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// fuserMode does as fuse-overlayfs 2 does, which Debian does not have: it tries to mount by
// itself, has fusermount3 mount and send it the descriptor, and becomes fuse-overlayfs with that.
const fuserMode = "fuser"

func runFuser() int {
	fail := func(what string, err error) int {
		fmt.Fprintln(os.Stderr, what, err)
		return 1
	}
	target, err := filepath.EvalSymlinks(os.Args[len(os.Args)-1])
	if os.Args[len(os.Args)-1] == "-f" {
		target, err = filepath.EvalSymlinks(os.Args[len(os.Args)-2])
	}
	if err != nil {
		return fail("find the target", err)
	}
	device, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		return fail("open the device", err)
	}
	options := fmt.Sprintf("fd=%d,rootmode=20666,user_id=0,group_id=0", device.Fd())
	if err := unix.Mount("fuse-overlayfs", target, "fuse", 0, options); err != unix.EPERM {
		return fail("mount on "+target, fmt.Errorf("%v, want %v", err, unix.EPERM))
	}
	device.Close()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		return fail("make sockets", err)
	}
	cmd := exec.Command(os.Getenv(fusermountEnv), "-o", "fsname=fuse-overlayfs,suid", "--", target)
	cmd.Stderr = os.Stderr
	cmd.ExtraFiles = []*os.File{os.NewFile(fuseDevice, "device"), os.NewFile(uintptr(pair[0]), "comm")}
	cmd.Env = append(os.Environ(), fusermountComm+"=4")
	if err := cmd.Run(); err != nil {
		return fail("run fusermount3", err)
	}
	rights := make([]byte, unix.CmsgSpace(4))
	n, rn, _, _, err := unix.Recvmsg(pair[1], make([]byte, 1), rights, 0)
	if err != nil || n != 1 {
		return fail("receive", fmt.Errorf("%d bytes: %w", n, err))
	}
	messages, err := unix.ParseSocketControlMessage(rights[:rn])
	if err != nil || len(messages) != 1 {
		return fail("receive", fmt.Errorf("%v: %w", messages, err))
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return fail("receive", fmt.Errorf("%v: %w", fds, err))
	}
	if err := unix.Dup3(fds[0], 99, 0); err != nil {
		return fail("keep the descriptor", err)
	}
	program, err := exec.LookPath("fuse-overlayfs")
	if err != nil {
		return fail("find fuse-overlayfs", err)
	}
	args := strings.Split(strings.ReplaceAll(strings.Join(os.Args, "\x00"), "/dev/fd/3", "/dev/fd/99"), "\x00")
	return fail("run fuse-overlayfs", unix.Exec(program, args, os.Environ()))
}

// TestFuseVersion2: a fuse-overlayfs that mounts by itself, or by fusermount3, gets the mount
// that is there.
func TestFuseVersion2(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(t.TempDir(), "fuse-overlayfs")
	if err := os.Symlink(self, program); err != nil {
		t.Fatal(err)
	}
	o := testOptions(t, t.TempDir(), DriverFuse)
	o.MountProgram = writeScript(t, "export "+childMode+"="+fuserMode+"\nexec "+program+` "$@"`)
	s := openStore(t, o)
	image := loadInto(t, s, "localhost/sample:latest", sample(t, "one"))
	r, err := s.Rootfs.Create(t.Context(), RootfsSpec{ID: containerID(1), ImageID: image})
	if err != nil {
		t.Fatal(err)
	}
	wantSample(t, r.Path, "one", 0)
	writeFile(t, filepath.Join(r.Path, "srv"), "written")
	wantFile(t, filepath.Join(r.Path, "srv"), "written", 0o644, 0, 0)
}
