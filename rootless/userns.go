package rootless

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// UserNS reads the switches with which distributions forbid user namespaces.
// Ubuntu's AppArmor rule depends on the program, so where that is on one is made
// for a try.
func (h Host) UserNS() *Problem {
	if v, ok := h.Sysctl("user/max_user_namespaces"); ok && v == 0 {
		return &Problem{ErrNoUserNS, "the sysctl user.max_user_namespaces is 0",
			"echo user.max_user_namespaces=28633 | sudo tee /etc/sysctl.d/90-subpod.conf\nsudo sysctl --system"}
	}
	if v, ok := h.Sysctl("kernel/unprivileged_userns_clone"); ok && v == 0 {
		return &Problem{ErrNoUserNS, "the sysctl kernel.unprivileged_userns_clone is 0",
			"echo kernel.unprivileged_userns_clone=1 | sudo tee /etc/sysctl.d/90-subpod.conf\nsudo sysctl --system"}
	}
	if h.appArmorRestricts() {
		return h.probeUserNS()
	}
	return nil
}

func (h Host) appArmorRestricts() bool {
	v, ok := h.Sysctl("kernel/apparmor_restrict_unprivileged_userns")
	return ok && v != 0
}

// probeUserNS makes a user namespace and mounts in it.
func (h Host) probeUserNS() *Problem {
	err := h.TryUserNS()
	if err == nil {
		return nil
	}
	what := "making one and mounting in it was refused: " + err.Error()
	if h.appArmorRestricts() {
		subpod := filepath.Join(filepath.Dir(h.Executable), "subpod")
		return &Problem{ErrNoUserNS, what + "; AppArmor restricts them to programs with a profile " +
			"(kernel.apparmor_restrict_unprivileged_userns)",
			subpod + " doctor --apparmor-profile | sudo tee /etc/apparmor.d/subpod\n" +
				"sudo apparmor_parser -r /etc/apparmor.d/subpod"}
	}
	return &Problem{ErrNoUserNS, what, "inside a container: allow the system calls clone, unshare, setns, mount " +
		"(seccomp: Unconfined) and user namespaces (AppArmor, SELinux)"}
}

// tryUserNS does in a child what a node begins with.
func tryUserNS() error { return try(0) }

// tryProc also mounts what each container needs: a /proc of its own.
func tryProc() error { return try(unix.CLONE_NEWPID) }

func try(more uintptr) error {
	if os.Getenv(envRole) != "" {
		// This is the child already, and would go on making children.
		return errors.New("Dispatch was not called first in main")
	}
	var out bytes.Buffer
	cmd := exec.Command(selfExe)
	cmd.Env = append(cleanEnv(os.Environ()), envRole+"="+roleProbe)
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNS | more,
		UidMappings: []syscall.SysProcIDMap{{HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{HostID: os.Getegid(), Size: 1}},
		Pdeathsig:   unix.SIGKILL,
	}
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%w %s", err, bytes.TrimSpace(out.Bytes()))
	}
	return nil
}

// runProbeRole does the first things of a node that such rules refuse.
func runProbeRole() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("mount: %w", err)
	}
	if os.Getpid() != 1 {
		return nil
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount a fresh /proc: %w", err)
	}
	return nil
}
