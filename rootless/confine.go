package rootless

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/pkg/landlock"
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
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("confine %s: %w", os.Args[0], err)
	}
	if err := uplinkRules(reads).Enter(); err != nil {
		return fmt.Errorf("confine %s: %w", os.Args[0], err)
	}
	return fmt.Errorf("execute %s: %w", os.Args[0], unix.Exec(os.Args[0], args, cleanEnv(os.Environ())))
}

// uplinkRules are what an uplink's program may do: read some paths, open the tap device,
// and the network.
func uplinkRules(reads []string) landlock.Rules {
	return landlock.Rules{
		Files: []landlock.Files{
			{Access: landlock.Read | landlock.Execute, Paths: reads},
			{Access: landlock.Read | landlock.Write | landlock.Control, Paths: []string{"/dev/net/tun"}},
		},
		Scoped: true,
	}
}
