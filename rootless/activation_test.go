package rootless

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestTakeActivation: one listening unix socket for this process is handed on, all else
// is not.
func TestTakeActivation(t *testing.T) {
	if out := os.Getenv("ACTIVATION_TEST"); out != "" {
		activated(out)
		return
	}
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	listener, err := l.(*net.UnixListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	plain, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	datagrams := os.NewFile(uintptr(fds[0]), "datagrams")
	defer datagrams.Close()
	defer unix.Close(fds[1])
	for _, c := range []struct {
		name, count string
		file        *os.File
		foreign     bool // for another process
		want        string
	}{
		{name: "one", count: "1", file: listener, want: "true <nil> 0 1 kept, inherited"},
		{name: "none", count: "", file: listener, want: "false <nil>"},
		{name: "another's", count: "1", file: listener, foreign: true, want: "false <nil>"},
		{name: "two", count: "2", file: listener, want: "false the service manager passes 2 sockets"},
		{name: "no socket", count: "1", file: plain, want: "false look at the socket of the service manager: socket operation on non-socket; if no service manager has set LISTEN_FDS, unset it"},
		{name: "another kind", count: "1", file: datagrams, want: "false the socket of the service manager is no listening unix stream socket"},
	} {
		t.Run(c.name, func(t *testing.T) {
			out := filepath.Join(t.TempDir(), "out")
			// sh executes the program, so that its PID is the program's.
			pid := "$$"
			if c.foreign {
				pid = "1"
			}
			cmd := exec.Command("/bin/sh", "-c", `LISTEN_PID=`+pid+` exec "$0" "-test.run=^TestTakeActivation$"`, "/proc/self/exe")
			if cmd.Args[3], err = os.Executable(); err != nil {
				t.Fatal(err)
			}
			cmd.ExtraFiles = []*os.File{c.file}
			cmd.Env = append(os.Environ(), "ACTIVATION_TEST="+out, envListenFDs+"="+c.count)
			if text, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, text)
			}
			if got, _ := os.ReadFile(out); !strings.HasPrefix(string(got), c.want) {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

// activated writes what the functions of this process say.
func activated(out string) {
	ok, err := takeActivation()
	text := strconv.FormatBool(ok) + " " + errText(err)
	if ok {
		flags, _ := unix.FcntlInt(listenFD, unix.F_GETFD, 0)
		text += " " + os.Getenv(envListenPID) + " " + os.Getenv(envListenFDs)
		keepActivation()
		after, _ := unix.FcntlInt(listenFD, unix.F_GETFD, 0)
		if flags == unix.FD_CLOEXEC && after == 0 && os.Getenv(envListenPID) == strconv.Itoa(os.Getpid()) {
			text += " kept,"
		}
		if ok, _ := takeActivation(); ok && inheritActivation() != nil && os.Getenv(envListenFDs) == "" {
			text += " inherited"
		}
	}
	_ = os.WriteFile(out, []byte(text), 0o600)
}

func errText(err error) string {
	if err == nil {
		return "<nil>"
	}
	return err.Error()
}
