package attack

import (
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestHandles: no container that is not privileged opens the node's mount namespace by
// its file handle, whatever capabilities it has added, whatever profile it has and in
// whatever form it calls the kernel; a privileged one in a user namespace of its own
// does not either.
func TestHandles(t *testing.T) {
	c := newCage(t)
	handle := c.nodeHandle()
	unconfined := &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}
	profile := filepath.Join(c.n.Dir, "profile.json")
	if err := os.WriteFile(profile, []byte(`{"defaultAction": "SCMP_ACT_ALLOW",
		"archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86", "SCMP_ARCH_X32"]}], "syscalls": [{"names": ["open_by_handle_at"], "action": "SCMP_ACT_ALLOW"}]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	local := &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: profile}
	both := []string{"SYS_ADMIN", "DAC_READ_SEARCH", "SYS_CHROOT"}
	for _, a := range []struct {
		name string
		inmate
	}{
		{"default profile", inmate{caps: both}},
		{"all capabilities", inmate{caps: []string{"ALL"}}},
		{"unconfined", inmate{caps: both, seccomp: unconfined}},
		{"unconfined, SYS_ADMIN alone", inmate{caps: []string{"SYS_ADMIN"}, seccomp: unconfined}},
		{"a profile that allows it", inmate{caps: both, seccomp: local}},
		{"privileged, own users", inmate{privileged: true, users: ownUsers()}},
	} {
		t.Run(a.name, func(t *testing.T) {
			c := c.in(t)
			id := c.run(a.inmate)
			c.escape(id, "handles", handle, c.secret)
			out := c.escape(id, "foreign", handle, c.secret)
			t.Log(strings.ReplaceAll(out, "\n", "; "))
		})
	}
}

// nodeHandle returns the handle of the node's mount namespace.
func (c *cage) nodeHandle() string {
	c.Helper()
	exe, err := os.Executable()
	if err != nil {
		c.Fatal(err)
	}
	handle := strings.TrimSpace(c.n.Enter(exe, "escape-own-handle"))
	if handle = strings.TrimSpace(strings.TrimSuffix(handle, tried)); strings.HasPrefix(handle, "none") {
		c.Skipf("this kernel has no handles of namespaces (Linux 6.18 has): %s", handle)
	}
	return handle
}

// nsHandle is struct file_handle with the 16 bytes of a namespace's.
type nsHandle struct {
	size uint32
	kind int32
	data [16]byte
}

func parseHandle(text string) (h nsHandle, err error) {
	kind, data, _ := strings.Cut(text, ":")
	n, err := strconv.Atoi(kind)
	if err != nil {
		return h, err
	}
	b, err := hex.DecodeString(data)
	h.size, h.kind = uint32(copy(h.data[:], b)), int32(n)
	return h, err
}

// ownHandle prints the handle of the mount namespace that it is in.
func ownHandle([]string) error {
	fd, err := unix.Open("/proc/self/ns/mnt", unix.O_RDONLY, 0)
	if err != nil {
		return err
	}
	h, _, err := unix.NameToHandleAt(fd, "", unix.AT_EMPTY_PATH)
	if err != nil || h.Size() != 16 {
		fmt.Println("none:", err)
		return nil
	}
	fmt.Printf("%d:%x\n", h.Type(), h.Bytes())
	return nil
}

// openHandles opens a namespace by its handle, and enters it: args are the handle and
// a secret.
func openHandles(args []string) error {
	return withHandle(args, func(fd int, h *nsHandle) (int, error) {
		r, _, errno := unix.RawSyscall(unix.SYS_OPEN_BY_HANDLE_AT, uintptr(fd), uintptr(unsafe.Pointer(h)), unix.O_RDONLY)
		if errno != 0 {
			return -1, errno
		}
		return int(r), nil
	})
}

func withHandle(args []string, open func(fd int, h *nsHandle) (int, error)) error {
	runtime.LockOSThread()
	h, err := parseHandle(args[0])
	if err != nil {
		return err
	}
	own, err := unix.Open("/proc/self/ns/mnt", unix.O_RDONLY, 0)
	if err != nil {
		return err
	}
	fd, err := open(own, &h)
	fmt.Println("open by handle:", fd, err)
	if err != nil {
		return nil
	}
	got("a namespace by its handle")
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return err
	}
	if err := unix.Setns(fd, unix.CLONE_NEWNS); err != nil {
		fmt.Println("setns:", err)
		return nil
	}
	b, err := os.ReadFile(args[1])
	got("the mount namespace: %s, %v", b, err)
	return nil
}
