package netns

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/subpod/subpod/pkg/idmap"
	"golang.org/x/sys/unix"
)

// owner returns the inode of the user namespace that owns the namespace at path
// (ioctl_ns(2)).
func owner(t *testing.T, path string) uint64 {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fd, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_USERNS)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

func TestNestedUserNamespace(t *testing.T) {
	ids := []idmap.Map{{Container: 0, Host: 1000, Size: 2000}}
	for _, pid := range []bool{false, true} {
		t.Run(map[bool]string{false: "without PID", true: "with PID"}[pid], func(t *testing.T) {
			before := nsMounts(t)
			dir := filepath.Join(t.TempDir(), "pod")
			pins, err := Pin(context.Background(), PinSpec{
				Dir: dir, Net: true, IPC: true, UTS: true, Hostname: "inner", PID: pid, PauseUID: 1999, PauseGID: 1998,
				UserNS:  &IDMaps{UIDs: ids, GIDs: ids},
				Sysctls: map[string]string{"net.ipv4.ip_unprivileged_port_start": "0", "kernel.shm_rmid_forced": "1", "fs.mqueue.msg_max": "20"},
			})
			if err != nil {
				t.Fatal(err)
			}
			defer mustUnpin(t, dir)
			checkNested(t, pins, pid)
			if pid {
				checkPause(t, pins, 1000+1999, 1000+1998)
			}
			mustUnpin(t, dir)
			if n := nsMounts(t); n != before {
				t.Errorf("%d pins are left", n-before)
			}
			if !pid {
				if left := children(t); len(left) != 0 {
					t.Errorf("the helper is left: %v", left)
				}
			}
		})
	}
}

func checkNested(t *testing.T, pins Pins, pid bool) {
	t.Helper()
	user := inode(t, pins.User)
	owned := []string{pins.Net, pins.IPC, pins.UTS}
	if pid {
		owned = append(owned, pins.PID)
		if !pins.Pause.Alive() {
			t.Error("the pause process is not alive")
		}
	} else if pins.PID != "" || !pins.Pause.IsZero() {
		t.Errorf("a PID namespace that was not asked for: %+v", pins)
	}
	for _, p := range owned {
		if owner(t, p) != user {
			t.Errorf("%s is not owned by the nested user namespace", p)
		}
	}
	inPins(t, Pins{Net: pins.Net, IPC: pins.IPC, UTS: pins.UTS}, func() error {
		var u unix.Utsname
		if err := unix.Uname(&u); err != nil {
			return err
		}
		if got := unix.ByteSliceToString(u.Nodename[:]); got != "inner" {
			t.Errorf("hostname %q", got)
		}
		return errors.Join(
			expectFile("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0"),
			expectFile("/proc/sys/kernel/shm_rmid_forced", "1"),
			expectFile("/proc/sys/fs/mqueue/msg_max", "20"))
	})
	args := []string{"--user=" + pins.User, "--net=" + pins.Net, "--setuid=0", "--setgid=0"}
	if pid {
		args = append(args, "--pid="+pins.PID)
	}
	out, err := exec.Command("nsenter", append(args, "--", "sh", "-c", "id -u; cat /proc/self/uid_map /proc/self/gid_map; ip link set lo down && ip link set lo up && echo admin")...).CombinedOutput()
	want := "0 0 1000 2000 0 1000 2000 admin"
	if got := strings.Join(strings.Fields(string(out)), " "); err != nil || got != want {
		t.Errorf("inside: %q, %v; want %q", got, err, want)
	}
}

func TestNestedUserNamespaceErrors(t *testing.T) {
	before := nsMounts(t)
	for name, ids := range map[string][]idmap.Map{
		"no root":           {{Container: 1, Host: 1000, Size: 10}},
		"none":              nil,
		"beyond the parent": {{Container: 0, Host: 65000, Size: 65536}},
	} {
		dir := filepath.Join(t.TempDir(), "pod")
		_, err := Pin(context.Background(), PinSpec{Dir: dir, Net: true, UserNS: &IDMaps{UIDs: ids, GIDs: ids}})
		if err == nil {
			t.Errorf("%s: accepted", name)
		}
		if left, _ := os.ReadDir(dir); len(left) != 0 {
			t.Errorf("%s: files are left: %v", name, left)
		}
	}
	if n := nsMounts(t); n != before {
		t.Errorf("%d pins are left", n-before)
	}
	if left := children(t); len(left) != 0 {
		t.Errorf("processes are left: %v", left)
	}
}

func BenchmarkPinNestedUserNamespace(b *testing.B) {
	ids := []idmap.Map{{Container: 0, Host: 1000, Size: 2000}}
	for b.Loop() {
		dir := filepath.Join(b.TempDir(), "pod")
		if _, err := Pin(context.Background(), PinSpec{Dir: dir, Net: true, IPC: true, UTS: true, UserNS: &IDMaps{UIDs: ids, GIDs: ids}}); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		mustUnpin(b, dir)
		b.StartTimer()
	}
}

func BenchmarkPause(b *testing.B) {
	for b.Loop() {
		dir := b.TempDir()
		if _, err := Pin(context.Background(), PinSpec{Dir: dir, PID: true, PauseUID: 65535, PauseGID: 65535}); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		mustUnpin(b, dir)
		b.StartTimer()
	}
}
