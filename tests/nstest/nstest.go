// Package nstest runs the tests of a package as root of a fresh user namespace,
// so that they use real mounts, namespaces and networks and need no privileges.
package nstest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"os/user"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// Options say what namespaces the tests get beside a user and a mount namespace.
type Options struct {
	Net, PID, IPC, UTS bool
	// IDs is how many user and group IDs the tests need, at most 65536. More
	// than one needs real root or subordinate IDs (and newuidmap).
	IDs int
	// Setup runs in the namespaces before the tests.
	Setup func() error
}

const marker = "SUBPOD_NSTEST"

// firstID is the first host ID of the range when real root starts the tests:
// inside, nothing is real root.
const firstID = 100000

// Main re-executes the test binary in new namespaces and returns its exit code
// there: func TestMain(m *testing.M) { os.Exit(nstest.Main(m, nstest.Options{…})) }.
// Tests that cannot have their namespaces fail; they are never skipped.
func Main(m *testing.M, o Options) int {
	switch os.Getenv(marker) {
	case "1":
		if err := inside(o); err != nil {
			fmt.Fprintln(os.Stderr, "nstest: set up the test namespaces:", err)
			return 1
		}
		// A test that runs its own binary again finds everything set up.
		os.Setenv(marker, "inside")
		return m.Run()
	case "inside":
		return m.Run()
	}
	cmd, err := command(o)
	if err != nil {
		fmt.Fprintln(os.Stderr, "nstest:", err)
		return 1
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM) // for the child, which ends by them
	err = cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return max(exit.ExitCode(), 1)
	}
	fmt.Fprintln(os.Stderr, "nstest: run the tests in new namespaces:", err)
	return 1
}

func command(o Options) (*exec.Cmd, error) {
	if os.Getuid() != 0 && o.IDs > 1 {
		return viaUnshare(o)
	}
	cmd := exec.Command("/proc/self/exe", testArgs()...)
	cmd.Env = append(os.Environ(), marker+"=1")
	attr := &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWUSER | unix.CLONE_NEWNS,
		Credential: &syscall.Credential{Uid: 0, Gid: 0, NoSetGroups: os.Getuid() != 0},
		Pdeathsig:  syscall.SIGKILL,
	}
	for _, f := range []struct {
		want bool
		flag uintptr
	}{{o.Net, unix.CLONE_NEWNET}, {o.PID, unix.CLONE_NEWPID}, {o.IPC, unix.CLONE_NEWIPC}, {o.UTS, unix.CLONE_NEWUTS}} {
		if f.want {
			attr.Cloneflags |= f.flag
		}
	}
	uid, gid, size := os.Getuid(), os.Getgid(), 1
	if uid == 0 {
		uid, gid, size = firstID, firstID, 65536
		attr.GidMappingsEnableSetgroups = true
	}
	attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: uid, Size: size}}
	attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: gid, Size: size}}
	cmd.SysProcAttr = attr
	return cmd, nil
}

// testArgs returns the arguments of this test run but for the log that the go
// command reads for its cache: it lies where the namespaces cannot write.
func testArgs() []string {
	return slices.DeleteFunc(slices.Clone(os.Args[1:]), func(arg string) bool {
		return strings.HasPrefix(arg, "-test.testlogfile=")
	})
}

// viaUnshare leaves the mapping of subordinate IDs to unshare(1) and newuidmap.
func viaUnshare(o Options) (*exec.Cmd, error) {
	u, err := user.Current()
	if err != nil {
		return nil, err
	}
	args := []string{"--user", "--map-root-user", "--mount", "--fork", "--kill-child"}
	for file, flag := range map[string]string{"/etc/subuid": "--map-users", "/etc/subgid": "--map-groups"} {
		first, ok := firstSubordinate(file, u.Username)
		if !ok {
			return nil, fmt.Errorf("these tests need %d IDs: give %s a range with usermod --add-subuids 1300000-1365535 --add-subgids 1300000-1365535 %s", o.IDs, u.Username, u.Username)
		}
		// As many as real root gives, whatever the user has.
		args = append(args, fmt.Sprintf("%s=%s,1,65535", flag, first))
	}
	for _, f := range []struct {
		want bool
		flag string
	}{{o.Net, "--net"}, {o.PID, "--pid"}, {o.IPC, "--ipc"}, {o.UTS, "--uts"}} {
		if f.want {
			args = append(args, f.flag)
		}
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.Command("unshare", append(append(args, self), testArgs()...)...)
	cmd.Env = append(os.Environ(), marker+"=1")
	return cmd, nil
}

// firstSubordinate returns the first ID of a user's range in subuid(5).
func firstSubordinate(file, name string) (first string, ok bool) {
	text, _ := os.ReadFile(file)
	for line := range strings.Lines(string(text)) {
		if f := strings.Split(strings.TrimSpace(line), ":"); len(f) == 3 && f[0] == name {
			return f[1], true
		}
	}
	return "", false
}

// inside makes the namespaces usable: no mount leaks out, /proc shows the own
// PID namespace.
func inside(o Options) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if o.PID {
		if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
			return fmt.Errorf("mount /proc: %w", err)
		}
	}
	// Files of tests belong to the namespace's root, whose /tmp this is.
	if err := unix.Mount("tmpfs", "/tmp", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=1777"); err != nil {
		return fmt.Errorf("mount /tmp: %w", err)
	}
	if o.Setup != nil {
		return o.Setup()
	}
	return nil
}
