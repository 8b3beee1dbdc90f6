package rootless

import (
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/pkg/seccompnotify"
)

// TestAnswer: while there is no server, calls that wait for one go on: those that it had received and not
// answered, those that nobody has received, and those to come. Once it is stopped, the next server has them.
func TestAnswer(t *testing.T) {
	ledger, err := seccompnotify.NewLedger()
	if err != nil {
		t.Fatal(err)
	}
	defer ledger.Close()
	entry, err := ledger.Take()
	if err != nil {
		t.Fatal(err)
	}
	calls, results := make(chan bool), make(chan unix.Errno, 1)
	listeners := make(chan *os.File)
	go func() { // the thread ends with it
		runtime.LockOSThread()
		defer close(results)
		err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
		var f *os.File
		if err == nil {
			f, err = seccompnotify.Install([]unix.SockFilter{
				{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0},
				{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: unix.SYS_GETPGID, Jf: 1},
				{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_USER_NOTIF},
				{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
			})
		}
		if err != nil {
			t.Error(err)
			close(listeners)
			return
		}
		listeners <- f
		for range calls {
			_, _, errno := unix.Syscall(unix.SYS_GETPGID, 0, 0, 0) // it blocks, which a raw one may not
			results <- errno
		}
	}()
	f := <-listeners
	if f == nil {
		t.FailNow()
	}
	defer f.Close()
	defer close(calls)
	h := held{log: slog.New(slog.DiscardHandler), files: map[string]*os.File{}}
	own, err := unix.FcntlInt(uintptr(ledger.FD()), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	h.files[seccompnotify.HeldLedger] = os.NewFile(uintptr(own), "ledger")
	h.files[fmt.Sprintf("%s%d:pod:0", seccompnotify.HeldListener, entry.Number)] = f
	server, err := seccompnotify.NewListener(int(f.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	calls <- true // received, and the server ends
	n, err := server.Recv()
	if err != nil {
		t.Fatal(err)
	}
	entry.Received(n.ID)
	stop := h.answer()
	if err := <-results; err != 0 {
		t.Errorf("the call that the server had received: %v", err)
	}
	for range 3 {
		calls <- true
		if err := <-results; err != 0 {
			t.Errorf("a call without a server: %v", err)
		}
	}
	stop()
	calls <- true
	if n, err = server.Recv(); err != nil {
		t.Fatal(err)
	}
	if err := server.Return(n.ID, unix.EHOSTUNREACH); err != nil {
		t.Error(err)
	}
	if err := <-results; err != unix.EHOSTUNREACH {
		t.Errorf("the next server's answer: %v", err)
	}
}
