package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// The agent runs commands in the Debian of its own that podman lives in: as the test
// user, whom nobody can put there from outside. It listens on an abstract socket, for
// processes of its own user.
const (
	agentArg = "agent"
	relayArg = "agent-run"
	agentEnv = "SUBPOD_BENCH_PODMAN" // the socket's name
)

// agentAnswer is what has become of a command.
type agentAnswer struct {
	Out, Words string // standard output and standard error
	Failed     string // why it could not be run, or its exit status
	Took       time.Duration
	PSS        int // of all processes below the agent but the workload, KiB, where that was asked for
}

// agentPSS is the command that asks for the memory instead.
const agentPSS = "memory"

func agentMain(name string) error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: "@" + name, Net: "unix"})
	if err != nil {
		return err
	}
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			if sameUser(c) {
				serveCommand(c)
			}
		}()
	}
}

func sameUser(c *net.UnixConn) bool {
	raw, err := c.SyscallConn()
	if err != nil {
		return false
	}
	same := false
	err = raw.Control(func(fd uintptr) {
		cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		same = err == nil && int(cred.Uid) == os.Getuid()
	})
	return err == nil && same
}

// serveCommand runs the command that is asked for, until the connection ends.
func serveCommand(c *net.UnixConn) {
	var argv []string
	in := json.NewDecoder(c)
	if err := in.Decode(&argv); err != nil || len(argv) == 0 {
		return
	}
	var a agentAnswer
	if argv[0] == agentPSS {
		for kind, u := range memoryBelow(os.Getpid()) {
			if !strings.HasPrefix(kind, "workload") && !strings.HasPrefix(kind, "agent") {
				a.PSS += u.pss
			}
		}
		_ = json.NewEncoder(c).Encode(a)
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() { // the end of the client is the end of the command
		_, _ = io.Copy(io.Discard, c)
		cancel()
	}()
	a.run(ctx, argv)
	_ = json.NewEncoder(c).Encode(a)
}

func (a *agentAnswer) run(ctx context.Context, argv []string) {
	// What a command leaves running may keep its streams: files, not pipes.
	var streams [2]*os.File
	for i := range streams {
		f, err := os.CreateTemp("", "agent")
		if err != nil {
			a.Failed = err.Error()
			return
		}
		defer f.Close()
		os.Remove(f.Name())
		streams[i] = f
	}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stdout, cmd.Stderr = streams[0], streams[1]
	// An input that ends with the client: echoMain ends by it.
	input, err := cmd.StdinPipe()
	if err != nil {
		a.Failed = err.Error()
		return
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error {
		input.Close()
		return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	}
	begin := time.Now()
	if err := cmd.Run(); err != nil {
		a.Failed = err.Error()
	}
	a.Took = time.Since(begin)
	for i, to := range []*string{&a.Out, &a.Words} {
		data, err := io.ReadAll(io.NewSectionReader(streams[i], 0, 16<<20))
		if err != nil {
			a.Failed = err.Error()
		}
		*to = string(data)
	}
}

// agent is the client's side.
type agent string

// dial sends a command.
func (g agent) dial(argv []string) (*net.UnixConn, error) {
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: "@" + string(g), Net: "unix"})
	if err != nil {
		return nil, err
	}
	if err := json.NewEncoder(c).Encode(argv); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// run runs a command and returns what it has written and how long it took.
func (g agent) run(argv ...string) (agentAnswer, error) {
	var a agentAnswer
	c, err := g.dial(argv)
	if err != nil {
		return a, err
	}
	defer c.Close()
	if err := json.NewDecoder(c).Decode(&a); err != nil {
		return a, fmt.Errorf("the agent has not answered to %s: %w", strings.Join(argv, " "), err)
	}
	if a.Failed != "" {
		return a, fmt.Errorf("%s: %s: %s", strings.Join(argv, " "), a.Failed, strings.TrimSpace(a.Words))
	}
	return a, nil
}

// relayMain runs a command by the agent as if it were here. It ends when its input does.
func relayMain(name string, argv []string) error {
	c, err := agent(name).dial(argv)
	if err != nil {
		return err
	}
	if info, err := os.Stdin.Stat(); err == nil && info.Mode()&os.ModeNamedPipe != 0 {
		go func() {
			_, _ = io.Copy(io.Discard, os.Stdin)
			c.Close()
		}()
	}
	var a agentAnswer
	if err := json.NewDecoder(c).Decode(&a); err != nil {
		return err
	}
	_, err = io.Copy(os.Stdout, bytes.NewReader([]byte(a.Out)))
	if a.Failed != "" {
		err = errors.Join(err, errors.New(a.Failed+": "+a.Words))
	}
	return err
}
