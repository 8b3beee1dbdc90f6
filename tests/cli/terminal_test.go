package cli

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/tests/node"
)

// TestTerminal runs commands on a terminal whose user types: the size arrives
// and changes, ctrl-p ctrl-q leaves a container, attach comes back, and the
// terminal is as it was.
func TestTerminal(t *testing.T) {
	n := node.Start(t, node.Options{Config: bridge})
	if _, err := n.Subpod("pull", "-q", "busybox"); err != nil {
		t.Fatal(err)
	}
	term := openTerminal(t, n, "run", "-it", "--name", "term", "busybox", "sh")
	term.expect("/ # ")
	term.input("stty size\r")
	term.expect("24 80")
	if err := unix.IoctlSetWinsize(int(term.user.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 40, Col: 100}); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(node.Converge); !term.says("40 100") && time.Now().Before(deadline); {
		term.input("stty size\r")
		time.Sleep(100 * time.Millisecond)
	}
	term.expect("40 100")
	term.input("echo $((6*7))\x10\x10\x11") // ctrl-p once more is passed on
	term.expect("detached from")
	if code := term.wait(); code != 0 {
		t.Errorf("after ctrl-p ctrl-q the exit code is %d", code)
	}
	if flags, err := unix.IoctlGetTermios(int(term.program.Fd()), unix.TCGETS); err != nil || flags.Lflag&unix.ECHO == 0 {
		t.Errorf("the terminal is not as it was: %+v, %v", flags, err)
	}
	again := openTerminal(t, n, "attach", "term")
	again.input("\recho back $((6*7)); exit 5\r")
	again.expect("back 42")
	if code := again.wait(); code != 5 {
		t.Errorf("the exit code of attach is %d, want 5", code)
	}
	sh := openTerminal(t, n, "run", "-it", "--rm", "busybox", "sh")
	sh.expect("/ # ")
	sh.input("echo $((6*7)); sleep 100\r")
	sh.expect("42")
	sh.input("\x03") // for the container's terminal, not for subpod
	sh.expect("/ # ")
	sh.input("exit 7\r")
	if code := sh.wait(); code != 7 {
		t.Errorf("the exit code is %d, want 7", code)
	}
	if _, err := n.Subpod("rm", "term"); err != nil {
		t.Error(err)
	}
	interrupted(t, n)
	settle(t, n)
}

// interrupted: who gives up at the password finds the terminal as it was. The rows of a
// table are no longer than the terminal is wide, and keys of one's own detach.
func interrupted(t *testing.T, n *node.Node) {
	t.Helper()
	login := openTerminal(t, n, "login", "127.0.0.1:1")
	login.expect("Username: ")
	login.input("me\r")
	login.expect("Password: ")
	login.input("\x03")
	if code := login.wait(); code != 128+int(syscall.SIGINT) {
		t.Errorf("the exit code of an interrupted login is %d", code)
	}
	if flags, err := unix.IoctlGetTermios(int(login.program.Fd()), unix.TCGETS); err != nil || flags.Lflag&unix.ECHO == 0 {
		t.Errorf("the terminal's echo is off: %+v, %v", flags, err)
	}
	keys := openTerminal(t, n, "run", "-it", "--detach-keys", "ctrl-x", "--name", "term-with-quite-a-long-name", "busybox", "sh")
	keys.expect("/ # ")
	keys.input("\x10\x11\x18")
	keys.expect("detached from")
	if code := keys.wait(); code != 0 {
		t.Errorf("after ctrl-x the exit code is %d", code)
	}
	latest := openTerminal(t, n, "attach", "--detach-keys", "ctrl-y", "-l")
	latest.input("\recho $((6*7))\r")
	latest.expect("42")
	latest.input("\x19")
	if code := latest.wait(); code != 0 {
		t.Errorf("after keys of attach's own the exit code is %d", code)
	}
	inside := openTerminal(t, n, "exec", "-it", "--detach-keys", "ctrl-x", "term-with-quite-a-long-name", "sh")
	inside.expect("/ # ")
	inside.input("\x10\x11\x18")
	if code := inside.wait(); code != 0 {
		t.Errorf("after ctrl-x the exit code of exec is %d", code)
	}
	list := openTerminal(t, n, "ps")
	list.expect("Up ")
	_ = list.wait()
	list.mu.Lock()
	defer list.mu.Unlock()
	for line := range strings.Lines(list.seen.String()) {
		if line = strings.TrimRight(line, "\r\n"); len([]rune(line)) > 80 {
			t.Errorf("a line of %d characters: %q", len([]rune(line)), line)
		}
	}
	if _, err := n.Subpod("rm", "-f", "term-with-quite-a-long-name"); err != nil {
		t.Error(err)
	}
}

// terminal is a command on a terminal.
type terminal struct {
	t             *testing.T
	cmd           *exec.Cmd
	user, program *os.File
	mu            sync.Mutex
	seen          strings.Builder
	at            int // up to where expect has looked
}

func openTerminal(t *testing.T, n *node.Node, args ...string) *terminal {
	t.Helper()
	user, program, err := node.Pty(24, 80)
	if err != nil {
		t.Fatal(err)
	}
	term := &terminal{t: t, user: user, program: program}
	term.cmd = n.Command(t.Context(), node.Path(t, node.Subpod), args...)
	term.cmd.Stdin, term.cmd.Stdout, term.cmd.Stderr = program, program, program
	term.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := term.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		term.cmd.Process.Kill()
		program.Close()
		user.Close()
	})
	go func() {
		buf := make([]byte, 4096)
		for {
			n, err := user.Read(buf)
			term.mu.Lock()
			term.seen.Write(buf[:n])
			term.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	return term
}

func (term *terminal) input(text string) {
	term.t.Helper()
	if _, err := term.user.WriteString(text); err != nil {
		term.t.Fatal(err)
	}
}

// says is whether there is text that was not seen by an earlier expect.
func (term *terminal) says(text string) bool {
	term.mu.Lock()
	defer term.mu.Unlock()
	return strings.Contains(term.seen.String()[term.at:], text)
}

// expect waits for text that was not seen by an earlier expect.
func (term *terminal) expect(text string) {
	term.t.Helper()
	for deadline := time.Now().Add(node.Converge); time.Now().Before(deadline); {
		term.mu.Lock()
		all := term.seen.String()
		i := strings.Index(all[term.at:], text)
		if i >= 0 {
			term.at += i + len(text)
		}
		term.mu.Unlock()
		if i >= 0 {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	term.t.Fatalf("no %q on the terminal: %q", text, term.seen.String())
}

func (term *terminal) wait() int {
	term.t.Helper()
	done := make(chan error, 1)
	go func() { done <- term.cmd.Wait() }()
	select {
	case err := <-done:
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			return exit.ExitCode()
		}
		if err != nil {
			term.t.Fatal(err)
		}
		return 0
	case <-time.After(node.Converge):
		term.t.Fatalf("it does not end; on the terminal: %q", term.seen.String())
		return -1
	}
}
