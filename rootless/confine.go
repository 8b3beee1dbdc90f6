package rootless

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The uplink's program reads what pods send, outside of the node: Landlock leaves it no
// file that it does not need (landlock(7)). Where the kernel has none it runs without.

// What a confined program may read, and the files that it gets open in place of the
// arguments that name them, one path a line: of namespaces, whose /proc entries of other
// processes Landlock closes.
const (
	envConfine = envPrefix + "CONFINE"
	envOpened  = envPrefix + "OPENED"
)

// confinedReads are for the dynamic linker, name resolution and the program itself.
var confinedReads = []string{"/usr", "/bin", "/lib", "/lib32", "/lib64", "/etc", "/nix", "/gnu", "/proc", "/dev/null", "/dev/urandom"}

// confine has cmd start by way of this binary, which gives up all files but those that
// the program needs, and those that are opened here.
func confine(cmd *exec.Cmd, opened ...string) {
	reads := slices.Clone(confinedReads)
	reads = append(reads, filepath.Dir(cmd.Path))
	if real, err := filepath.EvalSymlinks(cmd.Path); err == nil {
		reads = append(reads, filepath.Dir(real))
	}
	if real, err := filepath.EvalSymlinks("/etc/resolv.conf"); err == nil {
		reads = append(reads, filepath.Dir(real))
	}
	cmd.Env = append(cleanEnv(os.Environ()), envRole+"="+roleConfined, envConfine+"="+strings.Join(reads, "\n"),
		envOpened+"="+strings.Join(opened, "\n"))
	cmd.Args = append([]string{cmd.Path}, cmd.Args...)
	cmd.Path = selfExe
}

// runConfinedRole gives the rights up and becomes the program: its arguments are the
// path of the program and its own arguments.
func runConfinedRole() error {
	runtime.LockOSThread()
	args := slices.Clone(os.Args[1:])
	reads := strings.Split(os.Getenv(envConfine), "\n")
	for path := range strings.SplitSeq(os.Getenv(envOpened), "\n") {
		fd, err := unix.Open(path, unix.O_RDONLY, 0)
		if err != nil {
			return &os.PathError{Op: "open", Path: path, Err: err}
		}
		name := fmt.Sprintf("/proc/self/fd/%d", fd)
		reads = append(reads, name)
		for i := range args {
			args[i] = strings.ReplaceAll(args[i], path, name)
		}
	}
	if err := landlock(reads); err != nil && !errors.Is(err, unix.ENOSYS) && !errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("confine %s: %w", os.Args[0], err)
	}
	return fmt.Errorf("execute %s: %w", os.Args[0], unix.Exec(os.Args[0], args, cleanEnv(os.Environ())))
}

const (
	readRights  = unix.LANDLOCK_ACCESS_FS_EXECUTE | unix.LANDLOCK_ACCESS_FS_READ_FILE | unix.LANDLOCK_ACCESS_FS_READ_DIR
	writeRights = unix.LANDLOCK_ACCESS_FS_WRITE_FILE
	// allRights are those of the first version (Linux 5.13).
	allRights = readRights | writeRights | unix.LANDLOCK_ACCESS_FS_REMOVE_DIR | unix.LANDLOCK_ACCESS_FS_REMOVE_FILE |
		unix.LANDLOCK_ACCESS_FS_MAKE_CHAR | unix.LANDLOCK_ACCESS_FS_MAKE_DIR | unix.LANDLOCK_ACCESS_FS_MAKE_REG |
		unix.LANDLOCK_ACCESS_FS_MAKE_SOCK | unix.LANDLOCK_ACCESS_FS_MAKE_FIFO | unix.LANDLOCK_ACCESS_FS_MAKE_BLOCK | unix.LANDLOCK_ACCESS_FS_MAKE_SYM
	// scopesVersion of Landlock has scopes (Linux 6.12): abstract sockets, such as some
	// session buses', and signals.
	scopesVersion = 6
	scopes        = unix.LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET | unix.LANDLOCK_SCOPE_SIGNAL
)

// landlock leaves this thread and what it executes the right to read some paths and to
// open the tap device, and no other on files. ENOSYS, EOPNOTSUPP: the kernel has none.
func landlock(reads []string) error {
	version, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 {
		return errno
	}
	attr := unix.LandlockRulesetAttr{Handled_access_fs: allRights}
	size := unsafe.Offsetof(attr.Handled_access_net)
	if version >= scopesVersion {
		attr.Scoped, size = scopes, unsafe.Offsetof(attr.Scoped)+unsafe.Sizeof(attr.Scoped)
	}
	fd, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&attr)), size, 0)
	if errno != 0 {
		return errno
	}
	rules := int(fd)
	defer unix.Close(rules)
	for _, path := range reads {
		if err := allow(rules, path, readRights); err != nil {
			return err
		}
	}
	if err := allow(rules, "/dev/net/tun", unix.LANDLOCK_ACCESS_FS_READ_FILE|writeRights); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	if _, _, errno := unix.Syscall(unix.SYS_LANDLOCK_RESTRICT_SELF, uintptr(rules), 0, 0); errno != 0 {
		return errno
	}
	return nil
}

// allow adds rights below a path; a missing one is none.
func allow(rules int, path string, rights uint64) error {
	f, err := os.OpenFile(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.IsDir() {
		rights &^= unix.LANDLOCK_ACCESS_FS_READ_DIR
	}
	rule := unix.LandlockPathBeneathAttr{Allowed_access: rights, Parent_fd: int32(f.Fd())}
	_, _, errno := unix.Syscall6(unix.SYS_LANDLOCK_ADD_RULE, uintptr(rules), unix.LANDLOCK_RULE_PATH_BENEATH, uintptr(unsafe.Pointer(&rule)), 0, 0, 0)
	// EBADFD: a file of the kernel's own, which stands open to all.
	if errno != 0 && errno != unix.EBADFD {
		return fmt.Errorf("allow %s: %w", path, errno)
	}
	return nil
}
