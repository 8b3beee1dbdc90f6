package rootless

import (
	"os"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/pkg/seccompnotify"
)

// answer continues, while there is no server, the system calls of pods that wait for one: a
// listener whose calls nobody receives has them wait for ever. So do the calls that the server had
// received and not answered. stop ends it.
func (h *held) answer() (stop func()) {
	h.drain()
	h.mu.Lock()
	defer h.mu.Unlock()
	ledger := h.ledger()
	var all []*seccompnotify.Listener
	var wait sync.WaitGroup
	for name, f := range h.files {
		text, ok := strings.CutPrefix(name, seccompnotify.HeldListener)
		if !ok {
			continue
		}
		l, err := seccompnotify.NewListener(int(f.Fd()))
		if err != nil {
			h.log.Error("connections of a pod wait for the next server", "name", name, "error", err)
			continue
		}
		number, _, _ := strings.Cut(text, ":")
		var entry *seccompnotify.Entry
		if n, err := strconv.Atoi(number); err == nil && ledger != nil {
			entry = ledger.Again(n)
		}
		all = append(all, l)
		wait.Go(func() { continueAll(l, entry) })
	}
	return func() {
		for _, l := range all {
			l.Stop()
		}
		wait.Wait()
		for _, l := range all {
			_ = l.Close()
		}
		if ledger != nil {
			_ = ledger.Close()
		}
	}
}

// ledger opens the ledger that is held; nil for none.
func (h *held) ledger() *seccompnotify.Ledger {
	f := h.files[seccompnotify.HeldLedger]
	if f == nil {
		return nil
	}
	own, err := dupFile(f)
	if err != nil {
		return nil
	}
	l, err := seccompnotify.OpenLedger(own)
	if err != nil {
		h.log.Error("system calls of pods that the server had not answered may wait for ever", "error", err)
		return nil
	}
	return l
}

// continueAll continues the calls of a listener until it is stopped.
func continueAll(l *seccompnotify.Listener, entry *seccompnotify.Entry) {
	if entry != nil {
		entry.Release(l, 0)
	}
	for first := entry != nil; ; first = false {
		n, err := l.Recv()
		if err != nil {
			return
		}
		if first {
			entry.Release(l, n.ID)
		}
		_ = l.Continue(n.ID) // it may be gone
	}
}

// dupFile returns a file of its own for the same open file.
func dupFile(f *os.File) (*os.File, error) {
	conn, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd := -1
	var dupErr error
	if err := conn.Control(func(old uintptr) { fd, dupErr = unix.FcntlInt(old, unix.F_DUPFD_CLOEXEC, 0) }); err != nil {
		return nil, err
	}
	if dupErr != nil {
		return nil, dupErr
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}
