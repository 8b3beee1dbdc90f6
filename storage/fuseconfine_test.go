package storage

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
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
	target, err := filepath.EvalSymlinks("/dev/fd/3")
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
