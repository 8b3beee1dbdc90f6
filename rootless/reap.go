package rootless

import (
	"errors"
	"os"
	"os/signal"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// waitTimeout is how long a program that this process itself has started may be a
// zombie, before it is collected as an orphan.
const waitTimeout = time.Second

// reapOrphans collects, from now on, the processes that the kernel makes children of
// the node's first one when their parent has ended. Call it before that starts any.
// Rootlesskit's own reaper waits for any child, also for the programs that its port
// driver runs in the same process (nft, ip): whoever came second took them for failed,
// and host ports lost their clients' addresses. Here they are told apart by their session:
// what this process starts, the supervisor too, stays in its own; the server and all
// that it starts is in others.
// Each end is passed on to reaped.
func reapOrphans(reaped func(pid int, status unix.WaitStatus)) {
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, unix.SIGCHLD)
	// Below a terminal we are in the session of a shell outside, whose number is 0
	// here, as that of what enters the node.
	_, _ = unix.Setsid() // EPERM: we have one of our own already
	own, _ := unix.Getsid(0)
	go func() {
		for range ended {
			reapAllBut(own, reaped)
		}
	}()
}

// reapAllBut collects the children that have ended, those of the session only when
// nobody else has for too long.
func reapAllBut(own int, reaped func(int, unix.WaitStatus)) {
	waiting := time.Duration(0)
	for pid := anyZombie(); pid != 0; pid = anyZombie() {
		if session, err := unix.Getsid(pid); err == nil && session == own && waiting < waitTimeout {
			time.Sleep(time.Millisecond)
			waiting += time.Millisecond
			continue
		}
		waiting = 0
		var status unix.WaitStatus
		if got, err := unix.Wait4(pid, &status, unix.WNOHANG, nil); err == nil && got == pid {
			reaped(pid, status)
		}
	}
}

// anyZombie returns the PID of a child that has ended, and does not collect it;
// 0 when there is none.
func anyZombie() int {
	var info unix.Siginfo
	for {
		err := unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil)
		switch {
		case err == nil:
			return int(*(*int32)(unsafe.Add(unsafe.Pointer(&info), siPID)))
		case !errors.Is(err, unix.EINTR):
			return 0
		}
	}
}

// siPID is where siginfo_t has si_pid: behind three integers, aligned as a pointer
// is (sigaction(2), asm-generic/siginfo.h).
const siPID = (3*unsafe.Sizeof(int32(0)) + unsafe.Sizeof(uintptr(0)) - 1) &^ (unsafe.Sizeof(uintptr(0)) - 1)
