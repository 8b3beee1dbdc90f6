package cri

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/subpod/subpod/tests/node"
)

// session is a command that a test talks to while it runs.
type session struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.WriteCloser
	mu  sync.Mutex
	out bytes.Buffer
}

func (s *session) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.out.Write(p)
}

func (s *session) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.out.String()
}

// start runs crictl with its streams in the test's hands.
func start(t *testing.T, n *node.Node, args ...string) *session {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	s := &session{t: t, cmd: n.CrictlCommand(ctx, args...)}
	s.cmd.Stdout, s.cmd.Stderr = s, s
	in, err := s.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	s.in = in
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return s
}

// startTerminal runs crictl on a terminal of 33 rows and 77 columns.
func startTerminal(t *testing.T, n *node.Node, args ...string) *session {
	t.Helper()
	user, program, err := node.Pty(33, 77)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	s := &session{t: t, cmd: n.CrictlCommand(ctx, args...), in: user}
	s.cmd.Stdin, s.cmd.Stdout, s.cmd.Stderr = program, program, program
	t.Cleanup(func() { cancel(); user.Close() })
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	program.Close()
	go io.Copy(s, user)
	return s
}

func (s *session) say(text string) {
	s.t.Helper()
	if _, err := io.WriteString(s.in, text); err != nil {
		s.t.Errorf("write %q: %v", text, err)
	}
}

// waitFor waits until the session has printed text.
func (s *session) waitFor(text string) {
	s.t.Helper()
	eventually(s.t, "output "+text, func() error {
		if !strings.Contains(s.text(), text) {
			return fmt.Errorf("so far %q", s.text())
		}
		return nil
	})
}

// end waits for the command and returns its exit code.
func (s *session) end() int {
	s.t.Helper()
	if err := s.cmd.Wait(); err != nil && s.cmd.ProcessState == nil {
		s.t.Fatal(err)
	}
	return s.cmd.ProcessState.ExitCode()
}

// waitForSize prints the terminal's size once it has one: it is told after the
// connection is made. The terminal echoes this text, so it must not hold the
// answer.
const waitForSize = `until stty size >/tmp/size 2>/dev/null; do sleep 0.05; done; echo "size: $(cat /tmp/size)"`

func TestStreams(t *testing.T) {
	n := node.Start(t, node.Options{})
	n.Crictl("pull", busybox)
	n.Crictl("pull", nginx)
	noLeaks(t, n)
	p := runPod(t, n, "streams", nil)
	id := p.run("main", sleeper())

	t.Run("exec", func(t *testing.T) {
		n := n.For(t)
		s := start(t, n, "exec", "-i", id, "sh", "-c", "read line; echo \"read $line\"; echo err >&2; exit 9")
		s.say("first\n")
		s.waitFor("read first")
		s.waitFor("err")
		if code := s.end(); code == 0 {
			t.Errorf("exit code 0 of a command that ended with 9; output %q", s.text())
		}
	})
	t.Run("exec reads to the end of input", func(t *testing.T) {
		n := n.For(t)
		s := start(t, n, "exec", "-i", id, "wc", "-c")
		s.say(strings.Repeat("x", 300000))
		s.in.Close()
		s.waitFor("300000")
		if code := s.end(); code != 0 {
			t.Errorf("exit code %d", code)
		}
	})
	t.Run("exec on a terminal", func(t *testing.T) {
		n := n.For(t)
		s := startTerminal(t, n, "exec", "-it", id, "sh")
		s.say("tty; " + waitForSize + "\n")
		s.waitFor("/dev/pts/")
		s.waitFor("size: 33 77")
		s.say("exit\n")
		if code := s.end(); code != 0 {
			t.Errorf("exit code %d: %s", code, s.text())
		}
	})
	t.Run("a client that goes away ends its command", func(t *testing.T) {
		n := n.For(t)
		s := start(t, n, "exec", "-i", id, "sleep", "8642")
		isThere := func(want bool) func() error {
			return func() error {
				if out := n.Crictl("exec", "-s", id, "ps"); strings.Contains(out, "sleep 8642") != want {
					return fmt.Errorf("%s", out)
				}
				return nil
			}
		}
		eventually(t, "the command runs", isThere(true))
		s.cmd.Process.Kill()
		s.end()
		eventually(t, "the command is gone", isThere(false))
	})
	t.Run("attach", func(t *testing.T) {
		n := n.For(t)
		id := p.in(n).run("echoer", sh("while read line; do echo \"you said $line\"; done"), obj{"stdin": true})
		s := start(t, n, "attach", "-i", id)
		time.Sleep(300 * time.Millisecond) // output before the attachment is in the log alone
		s.say("hello\n")
		s.waitFor("you said hello")
		s.cmd.Process.Kill() // crictl has no key to detach
		s.end()
		if state := inspect(n, id).Status.State; state != "CONTAINER_RUNNING" {
			t.Errorf("after detaching the container is %s", state)
		}
		expect(t, "logs", n.Crictl("logs", id), "you said hello")
	})
	t.Run("attach on a terminal", func(t *testing.T) {
		n := n.For(t)
		id := p.in(n).run("terminal", []string{"sh"}, obj{"stdin": true, "tty": true})
		s := startTerminal(t, n, "attach", "-it", id)
		s.say("echo $((6*7)); " + waitForSize + "\n")
		s.waitFor("42")
		s.waitFor("size: 33 77")
		s.say("exit 5\n")
		if status := waitExited(t, n, id).Status; status.ExitCode != 5 {
			t.Errorf("exit code %d, want 5", status.ExitCode)
		}
		s.end()
	})
	t.Run("logs -f", func(t *testing.T) {
		n := n.For(t)
		id := p.in(n).run("counter", sh("for i in 1 2 3; do echo line $i; sleep 0.3; done"))
		s := start(t, n, "logs", "-f", id)
		s.waitFor("line 1")
		s.waitFor("line 3")
		if code := s.end(); code != 0 {
			t.Errorf("logs -f of a container that has ended: exit code %d: %s", code, s.text())
		}
	})
	t.Run("logs reopened", func(t *testing.T) { reopen(t, n.For(t), p.in(n.For(t))) })
	t.Run("port-forward", func(t *testing.T) { portForward(t, n.For(t), p.in(n.For(t))) })
}

// reopen moves the log away, as the kubelet does to rotate it.
func reopen(t *testing.T, n *node.Node, p *pod) {
	id := p.run("talker", sh("i=0; while :; do i=$((i+1)); echo number $i; sleep 0.05; done"))
	path := inspect(n, id).Status.LogPath
	eventually(t, "first lines", func() error {
		data, err := os.ReadFile(path)
		if err == nil && len(data) == 0 {
			err = io.EOF
		}
		return err
	})
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	n.Crictl("logs", "--reopen", id)
	if _, err := os.Stat(path); err != nil {
		t.Errorf("after the call: %v", err)
	}
	eventually(t, "lines in the new log", func() error {
		data, err := os.ReadFile(path)
		if err == nil && !bytes.Contains(data, []byte("number ")) {
			err = io.EOF
		}
		return err
	})
	n.Crictl("stop", id)
	old, _ := os.ReadFile(path + ".1")
	new, _ := os.ReadFile(path)
	lines := strings.Split(strings.TrimSpace(string(old)+string(new)), "\n")
	for i, line := range lines {
		if !strings.HasSuffix(line, fmt.Sprintf(" number %d", i+1)) {
			t.Fatalf("line %d of both logs is %q: something was lost", i+1, line)
		}
	}
}

func portForward(t *testing.T, n *node.Node, p *pod) {
	web := p.run("web", nil, obj{"image": obj{"image": nginx}})
	// A refused connection ends the client.
	eventually(t, "nginx listens", func() error {
		_, err := n.TryCrictl("exec", "-s", web, "wget", "-qO-", "http://127.0.0.1/")
		return err
	})
	s := start(t, n, "port-forward", p.id, ":80")
	s.waitFor("Forwarding from 127.0.0.1:")
	_, rest, _ := strings.Cut(s.text(), "127.0.0.1:")
	port, _, _ := strings.Cut(rest, " ")
	for range 3 {
		expect(t, "page", get(t, "http://"+net.JoinHostPort("127.0.0.1", port)+"/"), "Welcome to nginx")
	}
	s.cmd.Process.Signal(os.Interrupt)
	s.end()
}

// get fetches a page, waiting for the server to come up.
func get(t *testing.T, url string) (page string) {
	t.Helper()
	client := http.Client{Timeout: 5 * time.Second}
	defer client.CloseIdleConnections()
	eventually(t, "GET "+url, func() error {
		res, err := client.Get(url)
		if err != nil {
			return err
		}
		defer res.Body.Close()
		data, err := io.ReadAll(res.Body)
		page = string(data)
		if err == nil && res.StatusCode != http.StatusOK {
			err = fmt.Errorf("%s", res.Status)
		}
		return err
	})
	return page
}
