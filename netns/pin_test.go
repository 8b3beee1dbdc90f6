package netns

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// nsMounts counts the namespace pins in the mount table.
func nsMounts(t testing.TB) int {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for line := range strings.Lines(string(b)) {
		if strings.Contains(line, " - nsfs ") {
			n++
		}
	}
	return n
}

func inode(t testing.TB, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatalf("stat %s: %v", path, err)
	}
	return st.Ino
}

func mustUnpin(t testing.TB, dir string) {
	t.Helper()
	if err := Unpin(dir); err != nil {
		t.Errorf("Unpin: %v", err)
	}
}

// inPins runs f on a thread in the pinned namespaces.
func inPins(t testing.TB, p Pins, f func() error) {
	t.Helper()
	err := onThread(func() error {
		for path, kind := range map[string]int{p.Net: unix.CLONE_NEWNET, p.IPC: unix.CLONE_NEWIPC, p.UTS: unix.CLONE_NEWUTS} {
			if path != "" {
				if err := enter(path, kind); err != nil {
					return err
				}
			}
		}
		return f()
	})
	if err != nil {
		t.Fatal(err)
	}
}

func expectFile(path, want string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if got := strings.Join(strings.Fields(string(b)), " "); got != want {
		return fmt.Errorf("%s = %q, want %q", path, got, want)
	}
	return nil
}

func TestPinAndUnpin(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pod")
	before := nsMounts(t)
	own := inode(t, "/proc/thread-self/ns/net")
	pins, err := Pin(context.Background(), PinSpec{
		Dir: dir, Net: true, IPC: true, UTS: true, Hostname: "pod-1",
		Sysctls: map[string]string{
			"net.ipv4.ip_unprivileged_port_start": "80",
			"net/ipv4/ping_group_range":           "0 1000",
			"kernel.shm_rmid_forced":              "1",
			"fs.mqueue.msg_max":                   "20",
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer mustUnpin(t, dir)
	if n := nsMounts(t) - before; n != 3 {
		t.Errorf("%d pins are mounted, want 3", n)
	}
	if inode(t, pins.Net) == own {
		t.Error("the pinned network namespace is our own")
	}
	if pins.User != "" || pins.PID != "" {
		t.Errorf("pins that were not asked for: %+v", pins)
	}
	inPins(t, pins, func() error {
		var u unix.Utsname
		if err := unix.Uname(&u); err != nil {
			return err
		}
		if got := unix.ByteSliceToString(u.Nodename[:]); got != "pod-1" {
			t.Errorf("hostname %q, want pod-1", got)
		}
		l, err := net.Listen("tcp", "127.0.0.1:80") // lo is up, and has its address
		if err == nil {
			l.Close()
		}
		return errors.Join(err,
			expectFile("/proc/sys/net/ipv4/ip_unprivileged_port_start", "80"),
			expectFile("/proc/sys/net/ipv4/ping_group_range", "0 1000"),
			expectFile("/proc/sys/kernel/shm_rmid_forced", "1"),
			expectFile("/proc/sys/fs/mqueue/msg_max", "20"))
	})
	if inode(t, "/proc/self/ns/net") != own || inode(t, "/proc/thread-self/ns/net") != own {
		t.Error("the process itself was moved to another network namespace")
	}
	if _, err := Pin(context.Background(), PinSpec{Dir: dir, Net: true}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("second Pin in the same directory: %v, want ErrExist", err)
	}
	mustUnpin(t, dir)
	mustUnpin(t, dir) // idempotent
	if n := nsMounts(t); n != before {
		t.Errorf("%d pins are left", n-before)
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("files are left: %v", left)
	}
}

func TestPinOnlyWhatIsAsked(t *testing.T) {
	dir := t.TempDir()
	pins, err := Pin(context.Background(), PinSpec{Dir: dir, IPC: true})
	if err != nil {
		t.Fatal(err)
	}
	defer mustUnpin(t, dir)
	if pins.Net != "" || pins.UTS != "" || pins.IPC != filepath.Join(dir, "ipc") {
		t.Errorf("pins %+v", pins)
	}
}

func TestPinLeavesNothingOnError(t *testing.T) {
	for name, spec := range map[string]PinSpec{
		"not namespaced":       {Net: true, IPC: true, UTS: true, Sysctls: map[string]string{"kernel.panic": "1"}},
		"of the node":          {IPC: true, Sysctls: map[string]string{"net.ipv4.ip_forward": "1"}},
		"of the node's IPC":    {Net: true, Sysctls: map[string]string{"kernel.shmmax": "1"}},
		"unknown":              {Net: true, Sysctls: map[string]string{"net.ipv4.no_such_thing": "1"}},
		"bad value":            {Net: true, Sysctls: map[string]string{"net.ipv4.ip_forward": "many"}},
		"path":                 {Net: true, Sysctls: map[string]string{"net/../kernel/panic": "1"}},
		"dots":                 {Net: true, Sysctls: map[string]string{"net....kernel.panic": "1"}},
		"interface to come":    {Net: true, Sysctls: map[string]string{"net.ipv4.conf.eth0.forwarding": "1"}},
		"global in the kernel": {Net: true, Sysctls: map[string]string{"net.core.rmem_max": "1000000"}},
	} {
		t.Run(name, func(t *testing.T) {
			before := nsMounts(t)
			spec.Dir = t.TempDir()
			_, err := Pin(context.Background(), spec)
			if !errors.Is(err, ErrSysctl) {
				t.Errorf("error %v, want ErrSysctl", err)
			}
			for key := range spec.Sysctls {
				if err != nil && !strings.Contains(err.Error(), key) {
					t.Errorf("error %q does not name %s", err, key)
				}
			}
			if n := nsMounts(t); n != before {
				t.Errorf("%d pins are left", n-before)
			}
			if left, _ := os.ReadDir(spec.Dir); len(left) != 0 {
				t.Errorf("files are left: %v", left)
			}
		})
	}
	if _, err := Pin(context.Background(), PinSpec{Dir: t.TempDir(), UTS: true, Hostname: strings.Repeat("x", 65)}); err == nil {
		t.Error("a hostname of 65 bytes was accepted")
	}
}

func TestUnpinAfterInterruptedPin(t *testing.T) {
	before := nsMounts(t)
	dir := t.TempDir()
	if _, err := Pin(context.Background(), PinSpec{Dir: dir, Net: true, IPC: true}); err != nil {
		t.Fatal(err)
	}
	// As after a kill between making the file and binding it, and with one pin
	// bound twice by a retry.
	if err := unix.Unmount(filepath.Join(dir, "ipc"), 0); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("/proc/self/ns/net", filepath.Join(dir, "net"), "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	mustUnpin(t, dir)
	if n := nsMounts(t); n != before {
		t.Errorf("%d pins are left", n-before)
	}
	mustUnpin(t, filepath.Join(dir, "no", "such"))
}

func TestSplitAndApplySysctls(t *testing.T) {
	dir := t.TempDir()
	all := map[string]string{"net.ipv4.conf.eth0.forwarding": "1", "net.ipv4.conf.all.forwarding": "1", "net/ipv4/conf/eth0.5/arp_ignore": "1"}
	now, later := SplitSysctls(all)
	if len(now) != 1 || len(later) != 2 {
		t.Fatalf("SplitSysctls: now %v, later %v", now, later)
	}
	pins, err := Pin(context.Background(), PinSpec{Dir: dir, Net: true, Sysctls: now})
	if err != nil {
		t.Fatal(err)
	}
	defer mustUnpin(t, dir)
	if err := ApplySysctls(pins.Net, map[string]string{"net.ipv4.conf.lo.arp_ignore": "1"}); err != nil {
		t.Error(err)
	}
	inPins(t, pins, func() error { return expectFile("/proc/sys/net/ipv4/conf/lo/arp_ignore", "1") })
	if err := ApplySysctls(pins.Net, later); !errors.Is(err, ErrSysctl) {
		t.Errorf("sysctls of missing interfaces: %v, want ErrSysctl", err)
	}
}

func BenchmarkPinUnpin(b *testing.B) {
	dir := b.TempDir()
	for i := 0; b.Loop(); i++ {
		d := filepath.Join(dir, fmt.Sprint(i))
		if _, err := Pin(context.Background(), PinSpec{Dir: d, Net: true, IPC: true, UTS: true, Hostname: "pod"}); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		mustUnpin(b, d)
		b.StartTimer()
	}
}
