package subpath

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// TestMapIDs: a file system that was mounted in our own user namespace is shown with the
// IDs of another one; the host's own is refused, in words.
func TestMapIDs(t *testing.T) {
	maps := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 20000, Size: 3000}}
	holder := exec.Command("/bin/sleep", "60")
	holder.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER, UidMappings: maps, GidMappings: maps, GidMappingsEnableSetgroups: true, Pdeathsig: syscall.SIGKILL}
	must(t, holder.Start())
	defer func() { _ = holder.Process.Kill(); _ = holder.Wait() }()
	user := fmt.Sprintf("/proc/%d/ns/user", holder.Process.Pid)

	volume := t.TempDir()
	must(t, unix.Mount("tmpfs", volume, "tmpfs", 0, ""))
	defer unix.Unmount(volume, unix.MNT_DETACH)
	must(t, os.WriteFile(filepath.Join(volume, "f"), nil, 0o644))
	tree, err := MapIDs(volume, user)
	must(t, err)
	defer tree.Close()
	dir := filepath.Join(t.TempDir(), "mounts")
	target, err := Attach(dir, "mapped", tree)
	must(t, err)
	defer func() { must(t, Release(dir)) }()
	var st unix.Stat_t
	must(t, unix.Stat(filepath.Join(target, "f"), &st))
	if st.Uid != 20000 || st.Gid != 20000 {
		t.Errorf("owner %d:%d, want 20000:20000", st.Uid, st.Gid)
	}
	for what, source := range map[string]string{"of the host": "/etc", "mapped already": target} {
		tree, err := MapIDs(source, user)
		if !errors.Is(err, ErrNotMappable) {
			t.Errorf("a file system %s: %v", what, err)
		}
		if err == nil {
			tree.Close()
		}
	}
}
