package oci

import (
	"errors"
	"fmt"
	"os/exec"
	goruntime "runtime"
	"sync"
	"unsafe"

	"github.com/containerd/errdefs"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/pkg/errclass"
	"github.com/subpod/subpod/pkg/ocispec/seccompbpf"
)

// A process of the runtime joins the container's namespaces before it gives up its
// capabilities and before the container's seccomp filter is in force. A container with
// CAP_SYS_PTRACE can trace it then (the class of CVE-2016-9962; that it is not dumpable
// does not help against a capability in its user namespace) and with its capabilities
// open the node's mount namespace by a file handle. So it is started under a filter that
// refuses that call: conmon, the runtime and all below them inherit it.

// handleFilter is that filter, nil where there is none for this machine.
var handleFilter = sync.OnceValues(func() ([]byte, error) {
	errno := uint(unix.EPERM)
	p := &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{
		{Names: []string{"open_by_handle_at"}, Action: specs.ActErrno, ErrnoRet: &errno},
	}}
	switch goruntime.GOARCH {
	case "amd64":
		p.Architectures = []specs.Arch{specs.ArchX86_64, specs.ArchX86, specs.ArchX32}
	case "arm64":
		p.Architectures = []specs.Arch{specs.ArchAARCH64, specs.ArchARM}
	}
	filter, err := seccompbpf.Compile(p)
	if errors.Is(err, seccompbpf.ErrUnsupported) {
		return nil, nil
	}
	return filter, err
})

// filters are those that conmon or the runtime, and so the container, is started under.
type filters struct {
	confined bool
	// install puts another one on the calling thread; nil for none.
	install func() error
}

// filtersOf returns those of a container: switched is the pod whose sockets are switched, "" for
// none.
func filtersOf(e *Executor, confined bool, switched string) (filters, error) {
	f := filters{confined: confined}
	switch {
	case switched == "":
	case e.switchThread == nil:
		return f, fmt.Errorf("%w: its sockets are switched to the host's network, and this server has that off", errNoSwitch)
	default:
		f.install = func() error { return e.switchThread(switched) }
	}
	return f, nil
}

var errNoSwitch = errclass.New(errdefs.ErrFailedPrecondition, "cannot start a process in the pod")

// apply puts the filters on the calling thread, which is of no other use then.
func (f filters) apply() error {
	if f.confined {
		if err := confineThread(); err != nil {
			return err
		}
	}
	if f.install != nil {
		return f.install()
	}
	return nil
}

// startCommand is cmd.Start, for what makes a container or joins one to execute a command:
// with a session keyring of its own, and under filters. Both are those of a thread, which is
// of no other use then and ends. keyring is the error where it has the daemon's keyring: when
// no quota has room, containers still have to run.
func startCommand(cmd *exec.Cmd, f filters) (keyring, err error) {
	err = onOwnThread(func() error {
		keyring = joinKeyring()
		if err := f.apply(); err != nil {
			return err
		}
		return cmd.Start()
	})
	return keyring, err
}

// onOwnThread runs f on a thread that ends with it, and never on the main thread.
func onOwnThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		goruntime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// Blocked here, this goroutine keeps the main thread busy, so that the one
			// started below gets another.
			done <- onOwnThread(f)
			goruntime.UnlockOSThread()
			return
		}
		done <- f() // no unlock: the thread ends with the goroutine
	}()
	return <-done
}

// confineThread installs the filter for the calling thread. That takes CAP_SYS_ADMIN in
// its user namespace, as the server has in the node's.
func confineThread() error {
	filter, err := handleFilter()
	if err != nil {
		return fmt.Errorf("compile the filter of the runtime: %w", err)
	}
	if filter == nil {
		return nil
	}
	const instruction = int(unsafe.Sizeof(unix.SockFilter{}))
	prog := unix.SockFprog{Len: uint16(len(filter) / instruction), Filter: (*unix.SockFilter)(unsafe.Pointer(&filter[0]))}
	_, _, errno := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&prog)))
	switch errno {
	case 0, unix.EINVAL, unix.ENOSYS: // the latter: a kernel without filters
		return nil
	}
	return fmt.Errorf("confine the runtime: %w", errno)
}
