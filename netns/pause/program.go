package pause

import (
	"errors"
	"fmt"
	"runtime"
	"syscall"
)

// Setup says what a pause process becomes.
type Setup struct {
	// UID and GID are what it runs as, in its user namespace.
	UID, GID uint32
	// KeepGroups leaves the supplementary groups as they are: for a user namespace in
	// which setgroups(2) is denied.
	KeepGroups bool
}

// Ready is the descriptor by which a program reports.
const Ready = 3

// Program is an executable file.
type Program struct {
	ELF   []byte
	calls []string // system calls whose failure is reported, by step
}

// New compiles the program of a pause process for this machine, a static executable.
// Start it in new PID and mount namespaces, with a pipe as Ready; it
//
//   - closes all other files,
//   - replaces its root by an empty, read-only tmpfs and detaches the old one,
//   - drops all capabilities from all sets, becomes the user, sets no_new_privs, and
//     can no longer be dumped,
//   - ignores SIGCHLD, so that the kernel reaps what is handed to it (wait(2)), and
//     exits on SIGTERM and SIGINT,
//   - installs a seccomp filter (allowed) that leaves waiting and exiting,
//   - writes a byte to Ready, closes it, and waits for ever.
//
// When a step fails it writes that instead and exits: see Check.
func New(s Setup) (*Program, error) { return compile(runtime.GOARCH, s.steps) }

// NewWaiter compiles a program that reports and waits, and gives up nothing: for
// namespaces that are held for a moment, by a process that is killed before anybody
// else can see them.
func NewWaiter() (*Program, error) { return compile(runtime.GOARCH, wait) }

// Check returns nil when what was read from Ready says that the program waits, and
// otherwise the step that has failed.
func (p *Program) Check(report []byte) error {
	switch {
	case len(report) == 1:
		return nil
	case len(report) != reportSize:
		return errors.New("it ended without a report")
	}
	errno := syscall.Errno(-int64(order.Uint64(report)))
	if step := order.Uint64(report[8:]); step < uint64(len(p.calls)) {
		return fmt.Errorf("%s (step %d): %w", p.calls[step], step, errno)
	}
	return fmt.Errorf("a broken report: %x", report)
}

// Numbers of Linux that are the same on all machines.
const (
	msRdonly, msNosuid, msNodev, msNoexec = 1, 2, 4, 8
	msRec, msPrivate                      = 0x4000, 0x40000
	mntDetach                             = 2
	prSetDumpable, prSetName              = 4, 15
	prCapbsetDrop, prSetNoNewPrivs        = 24, 38
	prCapAmbient, prCapAmbientClearAll    = 47, 4
	capVersion3, capLast                  = 0x20080522, 63
	seccompSetModeFilter                  = 1
	sigint, sigterm, sigchld              = 2, 15, 17
	maxUint32                             = 0xffffffff
	sigIgn, saRestorer, sigsetSize        = 1, 0x04000000, 8
)

func (s Setup) steps(a *assembler) {
	// What was inherited by mistake, too.
	a.call("close_range", 0, Ready-1, 0)
	a.call("close_range", Ready+1, maxUint32, 0)
	a.call("prctl", prSetName, a.text("pause"), 0, 0, 0)
	emptyRoot(a)
	s.drop(a)
	// The handler does not return, so nothing is needed that would restore the stack.
	exit := a.data(words(a.exit, saRestorer, a.exit, 0))
	a.call("rt_sigaction", sigchld, a.data(words(sigIgn, 0, 0, 0)), 0, sigsetSize)
	a.call("rt_sigaction", sigterm, exit, 0, sigsetSize)
	a.call("rt_sigaction", sigint, exit, 0, sigsetSize)
	a.call("seccomp", seccompSetModeFilter, 0, filter(a))
	wait(a)
}

// emptyRoot mounts a tmpfs on /proc, which is everywhere, and makes it the root. With
// the same directory for the new root and the old one, the old one comes to lie on top
// of the new one, and can be detached (pivot_root(2)).
func emptyRoot(a *assembler) {
	root, place, dot, tmpfs := a.text("/"), a.text("/proc"), a.text("."), a.text("tmpfs")
	a.call("mount", 0, root, 0, msRec|msPrivate, 0)
	a.call("mount", tmpfs, place, tmpfs, msRdonly|msNosuid|msNodev|msNoexec, a.text("size=4k,nr_inodes=1,mode=555"))
	a.call("chdir", place)
	a.call("pivot_root", dot, dot)
	a.call("umount2", dot, mntDetach)
	a.call("chdir", root)
}

func (s Setup) drop(a *assembler) {
	for c := uint64(0); c <= capLast; c++ {
		a.try("prctl", prCapbsetDrop, c) // EINVAL for one that the kernel does not know
	}
	a.call("prctl", prCapAmbient, prCapAmbientClearAll, 0, 0, 0)
	if !s.KeepGroups {
		a.call("setgroups", 0, 0)
	}
	gid, uid := uint64(s.GID), uint64(s.UID)
	a.call("setresgid", gid, gid, gid)
	a.call("setresuid", uid, uid, uid)
	a.call("capset", a.data(words(capVersion3)), a.data(make([]byte, 24)))
	a.call("prctl", prSetNoNewPrivs, 1, 0, 0, 0)
	a.call("prctl", prSetDumpable, 0, 0, 0, 0)
}

// wait reports, lets go of the descriptor, and waits.
func wait(a *assembler) {
	a.call("write", Ready, a.data([]byte{1}), 1)
	a.call("close", Ready)
	again := a.here()
	a.try("ppoll", 0, 0, 0, 0, 0)
	a.jump(again)
}
