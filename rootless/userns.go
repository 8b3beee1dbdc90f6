package rootless

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// checkUserNS reads the switches with which distributions forbid user
// namespaces. Ubuntu's AppArmor rule depends on the program, so where that is on
// one is made for a try.
func checkUserNS(c Config) *Problem {
	if v, ok := sysctl("user/max_user_namespaces"); ok && v == 0 {
		return &Problem{ErrNoUserNS, "the sysctl user.max_user_namespaces is 0",
			"echo user.max_user_namespaces=28633 | sudo tee /etc/sysctl.d/90-subpod.conf\nsudo sysctl --system"}
	}
	if v, ok := sysctl("kernel/unprivileged_userns_clone"); ok && v == 0 {
		return &Problem{ErrNoUserNS, "the sysctl kernel.unprivileged_userns_clone is 0",
			"echo kernel.unprivileged_userns_clone=1 | sudo tee /etc/sysctl.d/90-subpod.conf\nsudo sysctl --system"}
	}
	if v, ok := sysctl("kernel/apparmor_restrict_unprivileged_userns"); ok && v != 0 {
		return probeUserNS(c)
	}
	return nil
}

// probeUserNS makes a user namespace and mounts in it.
func probeUserNS(Config) *Problem {
	var out bytes.Buffer
	cmd := exec.Command(selfExe)
	cmd.Env = append(cleanEnv(os.Environ()), envRole+"="+roleProbe)
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNS,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getegid(), Size: 1}},
		Pdeathsig:   unix.SIGKILL,
	}
	err := cmd.Run()
	if err == nil {
		return nil
	}
	what := fmt.Sprintf("making one and mounting in it was refused (%v) %s", err, strings.TrimSpace(out.String()))
	if v, ok := sysctl("kernel/apparmor_restrict_unprivileged_userns"); ok && v != 0 {
		exe, _ := os.Executable()
		return &Problem{ErrNoUserNS, what + "; AppArmor restricts them to programs with a profile " +
			"(kernel.apparmor_restrict_unprivileged_userns)", apparmorFix(exe)}
	}
	return &Problem{ErrNoUserNS, what, "inside a container: allow the system calls clone, unshare, setns, mount " +
		"(seccomp) and user namespaces (AppArmor, SELinux)"}
}

// runProbeRole does the first thing of a node that such rules refuse.
func runProbeRole() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	return nil
}

// apparmorFix is the command that gives the program at exe a profile which
// allows user namespaces and nothing else special (apparmor.d(5)).
func apparmorFix(exe string) string {
	name := strings.ReplaceAll(strings.Trim(exe, "/"), "/", ".")
	return "sudo tee /etc/apparmor.d/" + name + " <<'EOF'\n" +
		"abi <abi/4.0>,\ninclude <tunables/global>\n\n" +
		"profile " + name + " " + exe + " flags=(unconfined) {\n  userns,\n}\nEOF\n" +
		"sudo apparmor_parser -r /etc/apparmor.d/" + name
}

// sysctl reads a number below /proc/sys.
func sysctl(name string) (int, bool) {
	b, err := os.ReadFile("/proc/sys/" + name)
	if err != nil {
		return 0, false
	}
	v, err := strconv.Atoi(strings.TrimSpace(string(b)))
	return v, err == nil
}
