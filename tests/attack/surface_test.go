package attack

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TestKernelSurface: a container as it comes can make no call of the kernel's that has
// been a way out before, and write or read nothing of the machine's below /proc and /sys.
func TestKernelSurface(t *testing.T) {
	c := newCage(t)
	// What a kubelet asks for, and subpod's own commands.
	masked := strings.Fields("/proc/acpi /proc/asound /proc/interrupts /proc/kcore /proc/keys /proc/latency_stats /proc/sched_debug /proc/scsi /proc/timer_list /proc/timer_stats /sys/devices/virtual/powercap /sys/firmware")
	readOnly := strings.Fields("/proc/bus /proc/fs /proc/irq /proc/sys /proc/sysrq-trigger")
	for name, i := range map[string]inmate{
		"as it comes": {pid: ownPID}, "shared PID": {pid: podPID}, "node's network": {pid: ownPID, net: onNode}, "own users": {pid: ownPID, users: ownUsers()},
	} {
		t.Run(name, func(t *testing.T) {
			c := c.in(t)
			i.masked, i.readOnly = masked, readOnly
			id := c.run(i)
			t.Run("calls", func(t *testing.T) { c.in(t).escape(id, "surface") })
			t.Run("files", func(t *testing.T) { c.in(t).escape(id, "write", "masked") })
		})
	}
	// Privileged containers have all of these calls; the machine's settings are the
	// kernel's to keep.
	t.Run("privileged", func(t *testing.T) {
		c := c.in(t)
		c.escape(c.run(inmate{pid: ownPID, privileged: true}), "write")
	})
}

// trySurface makes calls that only the privileged need.
func trySurface([]string) error {
	runtime.LockOSThread()
	call := func(name string, number uintptr, args ...uintptr) {
		var a [6]uintptr
		copy(a[:], args)
		_, _, errno := unix.RawSyscall6(number, a[0], a[1], a[2], a[3], a[4], a[5])
		// A filter says EPERM, or ENOSYS where a program shall take another call.
		if errno != unix.EPERM && errno != unix.ENOSYS {
			got("%s: %v", name, errno)
		}
	}
	text := func(s string) uintptr { b := append([]byte(s), 0); return uintptr(unsafe.Pointer(&b[0])) }
	params := make([]byte, 256)
	zero := uintptr(unsafe.Pointer(&params[0]))
	call("io_uring_setup", unix.SYS_IO_URING_SETUP, 8, zero)
	call("userfaultfd", unix.SYS_USERFAULTFD, 0)
	call("bpf", unix.SYS_BPF, 0, zero, 64)
	call("perf_event_open", unix.SYS_PERF_EVENT_OPEN, zero, 0, ^uintptr(0), ^uintptr(0), 0)
	call("add_key", unix.SYS_ADD_KEY, text("user"), text("k"), text("v"), 1, ^uintptr(2))
	call("request_key", unix.SYS_REQUEST_KEY, text("user"), text("k"), 0, 0)
	call("keyctl", unix.SYS_KEYCTL, 0, ^uintptr(2), 0)
	call("open_by_handle_at", unix.SYS_OPEN_BY_HANDLE_AT, ^uintptr(0), zero, 0)
	call("mount", unix.SYS_MOUNT, text("none"), text("/tmp"), text("tmpfs"), 0, 0)
	call("fsopen", unix.SYS_FSOPEN, text("tmpfs"), 0)
	call("open_tree", unix.SYS_OPEN_TREE, ^uintptr(99), text("/"), 1)
	call("umount2", unix.SYS_UMOUNT2, text("/proc"), unix.MNT_DETACH)
	call("pivot_root", unix.SYS_PIVOT_ROOT, text("/"), text("/"))
	call("unshare(user)", unix.SYS_UNSHARE, unix.CLONE_NEWUSER)
	call("unshare(mount)", unix.SYS_UNSHARE, unix.CLONE_NEWNS)
	call("clone(user)", unix.SYS_CLONE, unix.CLONE_NEWUSER|uintptr(syscall.SIGCHLD), 0, 0, 0, 0)
	call("clone3", unix.SYS_CLONE3, zero, 0)
	call("setns", unix.SYS_SETNS, 0, 0)
	call("init_module", unix.SYS_INIT_MODULE, zero, 0, zero)
	call("kexec_load", unix.SYS_KEXEC_LOAD, 0, 0, 0, 0)
	call("reboot", unix.SYS_REBOOT, 0, 0, 0, 0)
	call("swapon", unix.SYS_SWAPON, text("/tmp"), 0)
	call("quotactl", unix.SYS_QUOTACTL, 0, 0, 0, 0)
	call("acct", unix.SYS_ACCT, text("/tmp"))
	call("settimeofday", unix.SYS_SETTIMEOFDAY, zero, 0)
	call("sethostname", unix.SYS_SETHOSTNAME, text("x"), 1)
	call("kcmp", unix.SYS_KCMP, 1, 1, 0, 0, 0)
	call("fanotify_init", unix.SYS_FANOTIFY_INIT, 0, 0)
	call("lookup_dcookie", unix.SYS_LOOKUP_DCOOKIE, 0, zero, 0)
	call("move_pages", unix.SYS_MOVE_PAGES, 0, 0, 0, 0, 0, 0)
	call("mknod", unix.SYS_MKNODAT, ^uintptr(99), text("/tmp/disk"), unix.S_IFBLK|0o600, 8<<8)
	call("mknod of the memory", unix.SYS_MKNODAT, ^uintptr(99), text("/tmp/mem"), unix.S_IFCHR|0o600, 1<<8|1)
	runtime.KeepAlive(params)
	for name, family := range map[string]int{"AF_ALG": unix.AF_ALG, "AF_VSOCK": unix.AF_VSOCK} {
		if fd, err := unix.Socket(family, unix.SOCK_STREAM, 0); err == nil {
			got("a socket of %s", name)
			unix.Close(fd)
		}
	}
	return nil
}

// settings of the machine are run by the kernel as root of the machine, or end it.
var settings = []string{
	"/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe", "/proc/sys/kernel/hotplug", "/proc/sys/kernel/usermodehelper/bset", "/proc/sys/kernel/sysrq",
	"/proc/sys/fs/binfmt_misc/register", "/proc/sys/vm/panic_on_oom", "/proc/sys/vm/drop_caches", "/proc/sysrq-trigger",
	"/proc/sys/kernel/yama/ptrace_scope", "/sys/kernel/uevent_helper", "/sys/kernel/mm/transparent_hugepage/enabled",
	"/sys/power/state", "/proc/irq/default_smp_affinity", "/proc/mtrr", "/proc/asound/version", "/proc/bus/pci", "/dev/mem", "/dev/kmem", "/dev/port", "/dev/kmsg", "/dev/sda", "/dev/vda",
}

// tryWrites opens the machine's settings and devices for writing, and with an argument
// reads what is masked.
func tryWrites(args []string) error {
	found := 0
	for _, path := range settings {
		if _, err := os.Lstat(path); err == nil {
			found++
		}
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			continue
		}
		f.Close()
		got("%s is writable", path)
	}
	if found < 5 {
		return errors.New("where are the settings of the kernel?")
	}
	for _, kind := range []string{"cgroup", "cgroup2", "debugfs", "tracefs", "securityfs", "configfs", "efivarfs"} {
		dir, err := os.MkdirTemp("/tmp", kind)
		if err != nil {
			return err
		}
		if err := unix.Mount("x", dir, kind, 0, ""); err != nil {
			continue
		}
		releases, _ := filepath.Glob(dir + "/release_agent")
		for _, r := range append(releases, dir+"/uevent_helper") {
			if f, err := os.OpenFile(r, os.O_WRONLY, 0); err == nil {
				f.Close()
				got("%s is writable", r)
			}
		}
		if kind != "cgroup" && kind != "cgroup2" {
			got("%s can be mounted", kind)
		}
	}
	if len(args) == 0 {
		return nil
	}
	for _, path := range []string{"/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/latency_stats", "/proc/sched_debug", "/proc/interrupts", "/proc/acpi", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap"} {
		if b, err := os.ReadFile(path); err == nil && len(b) > 0 {
			got("%s says %.60q", path, b)
		}
		if names, err := os.ReadDir(path); err == nil && len(names) > 0 {
			got("%s shows %d names", path, len(names))
		}
	}
	for _, path := range []string{"/proc/sys/net/ipv4/ip_forward", "/proc/sys/kernel/hostname", "/proc/sys/kernel/shmmax", "/proc/sys/net/ipv4/conf/all/route_localnet"} {
		if f, err := os.OpenFile(path, os.O_WRONLY, 0); err == nil {
			f.Close()
			got("%s is writable", path)
		}
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil || !strings.Contains(string(status), "Seccomp:\t2") || !strings.Contains(string(status), "NoNewPrivs:") {
		return fmt.Errorf("own status: %w: %s", err, status)
	}
	return nil
}
