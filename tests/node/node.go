package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/subpod/subpod/tests/leak"
	"github.com/subpod/subpod/tests/registry"
)

// Options of a node. The zero value is the daemon as it comes, with every image
// taken from the test registry.
type Options struct {
	Config     string   // TOML, as the user's ~/.config/subpod/subpod.toml
	Registries string   // registries.conf; "" is registry.Conf of Registry
	Prefix     []string // a command to run the daemon by, such as unshare
	Env        []string // more environment for the daemon
	Bin        string   // directory with the programs of another version; "" is this tree's
}

// Node is a running daemon, and where to find it.
type Node struct {
	Dir     string // all of the node's files
	Home    string
	XDG     string // XDG_RUNTIME_DIR
	RunDir  string
	DataDir string
	Socket  string

	t       testing.TB
	opts    Options
	cmd     *exec.Cmd
	done    chan struct{}
	exit    error
	log     *log    // of the daemon that was launched last
	logs    *[]*log // of all, also of those that a subtest has launched
	before  leak.Snapshot
	stopped bool
}

// StartTimeout bounds the wait for a daemon until it serves. It is no measure: it only
// ends a test that would wait forever.
const StartTimeout = Converge

// Start makes a node of its own for the test and waits until it serves. At the
// end of the test it is stopped, and the test fails if it leaves anything.
func Start(t testing.TB, o Options) *Node {
	t.Helper()
	n := Prepare(t, o)
	n.Run()
	return n
}

// Prepare makes the directories and files of a node without starting the daemon.
func Prepare(t testing.TB, o Options) *Node {
	t.Helper()
	base := os.Getenv("SUBPOD_TEST_DIR")
	if base == "" || os.Getenv("XDG_RUNTIME_DIR") == "" {
		t.Fatal("no SUBPOD_TEST_DIR: run the tests by 'make test' or 'tests/user.sh go test …'")
	}
	n := &Node{t: t, opts: o, logs: &[]*log{}}
	n.Dir = mkdirTemp(t, filepath.Join(base, "home"))
	n.XDG = mkdirTemp(t, os.Getenv("XDG_RUNTIME_DIR"))
	n.Home = filepath.Join(n.Dir, "home")
	n.RunDir = filepath.Join(n.XDG, "subpod")
	n.DataDir = filepath.Join(n.Home, ".local/share/subpod")
	n.Socket = filepath.Join(n.RunDir, "subpod.sock")
	registries := o.Registries
	if registries == "" {
		registries = registry.Conf(Registry(t))
	}
	n.WriteHome(".config/containers/registries.conf", registries)
	if o.Config != "" {
		n.WriteHome(".config/subpod/subpod.toml", o.Config)
	}
	// Tests mount what they have made, and read logs there.
	if err := os.Mkdir(filepath.Join(n.Dir, "logs"), 0o700); err != nil {
		t.Fatal(err)
	}
	if o.Bin == "" { // a version from before this key refuses it
		// Tests run their own program in the node, too.
		dir := filepath.Dir(executable())
		n.WriteHome(".config/subpod/subpod.toml.d/program.toml", fmt.Sprintf("[node]\nbinds = [%q]\n", dir+":"+dir+":ro"))
	}
	// The whole suite can be run with another driver or runtime handler.
	if extra := os.Getenv("SUBPOD_TEST_CONFIG"); extra != "" {
		n.WriteHome(".config/subpod/subpod.toml.d/test.toml", extra)
	}
	n.before = leak.Host(n.XDG, n.Dir)
	t.Cleanup(n.cleanUp)
	return n
}

// For returns the same node for a subtest, which is the one that fails then.
func (n *Node) For(t testing.TB) *Node {
	sub := *n
	sub.t = t
	return &sub
}

func mkdirTemp(t testing.TB, base string) string {
	t.Helper()
	dir, err := os.MkdirTemp(base, "n")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// WriteHome writes a file below the node's home.
func (n *Node) WriteHome(name, content string) {
	n.t.Helper()
	path := filepath.Join(n.Home, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		n.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		n.t.Fatal(err)
	}
}

// Environ is the environment of the daemon and its clients.
func (n *Node) Environ() []string {
	env := []string{"HOME=" + n.Home, "XDG_RUNTIME_DIR=" + n.XDG}
	for _, v := range os.Environ() {
		if !strings.HasPrefix(v, "HOME=") && !strings.HasPrefix(v, "XDG_") {
			env = append(env, v)
		}
	}
	return append(env, n.opts.Env...)
}

// Run starts the daemon (again, after Kill or Stop) and waits until it serves.
func (n *Node) Run() {
	n.t.Helper()
	n.Launch()
	deadline := time.Now().Add(StartTimeout)
	for {
		_, err := n.TryCrictl("version")
		if err == nil {
			return
		}
		select {
		case <-n.done:
			n.t.Fatalf("the daemon ended: %v", n.exit)
		case <-time.After(50 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			n.t.Fatalf("the daemon does not serve after %v: %v", StartTimeout, err)
		}
	}
}

// subpod is the path of the command.
func (n *Node) subpod() string {
	if n.opts.Bin != "" {
		return filepath.Join(n.opts.Bin, filepath.Base(Subpod))
	}
	return Path(n.t, Subpod)
}

// Launch starts the daemon without waiting for it.
func (n *Node) Launch(args ...string) {
	n.t.Helper()
	argv := append(append(append([]string{}, n.opts.Prefix...), n.subpod(), "daemon"), args...)
	n.log = &log{}
	*n.logs = append(*n.logs, n.log)
	n.cmd = exec.Command(argv[0], argv[1:]...)
	n.cmd.Env = n.Environ()
	n.cmd.Dir = n.Home
	n.cmd.Stdout, n.cmd.Stderr = n.log, n.log
	n.cmd.WaitDelay = 2 * time.Second
	// A process group of its own: the terminal's interrupt is for the test alone.
	n.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := n.cmd.Start(); err != nil {
		n.t.Fatal(err)
	}
	n.done, n.stopped = make(chan struct{}), false
	go func(cmd *exec.Cmd, done chan struct{}) {
		n.exit = cmd.Wait()
		close(done)
	}(n.cmd, n.done)
}

// Wait waits for the daemon to end and returns how it did.
func (n *Node) Wait(timeout time.Duration) error {
	select {
	case <-n.done:
		n.stopped = true
		return n.exit
	case <-time.After(timeout):
		return fmt.Errorf("the daemon still runs after %v", timeout)
	}
}

// PID of the daemon's first process.
func (n *Node) PID() int { return n.cmd.Process.Pid }

// Stop ends the daemon by SIGTERM, if it still runs, and compares what is left
// with what was there before.
func (n *Node) Stop() {
	n.t.Helper()
	if n.stopped || n.cmd == nil {
		return
	}
	pid := n.cmd.Process.Pid
	if len(n.opts.Prefix) > 0 {
		pid = -pid // the command in front of the daemon may not pass signals on
	}
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil && !errors.Is(err, syscall.ESRCH) {
		n.t.Errorf("SIGTERM to the daemon: %v", err)
	}
	if err := n.Wait(Converge); err != nil {
		n.t.Errorf("stop: %v\n%s", err, n.Log())
		n.cmd.Process.Kill()
		<-n.done
	}
	n.checkLeaks()
}

func (n *Node) checkLeaks() {
	n.t.Helper()
	for _, left := range leak.Left(n.before, func() leak.Snapshot { return leak.Host(n.XDG, n.Dir) }) {
		n.t.Errorf("left behind by the node: %s", left)
	}
}

func (n *Node) cleanUp() {
	n.Stop()
	n.checkLeaks()
	n.checkRaces()
	if n.t.Failed() && n.log != nil {
		n.t.Logf("the end of the daemon's log:\n%s", n.Log())
	}
	leak.KillDescendants(n.before)
	for _, dir := range []string{n.Dir, n.XDG} {
		if err := RemoveAll(dir); err != nil {
			n.t.Errorf("remove %s: %v", dir, err)
		}
	}
}

// RemoveAll removes a directory with files of subordinate users, which takes a
// user namespace where they are one's own.
func RemoveAll(dir string) error {
	if os.RemoveAll(dir) == nil {
		return nil
	}
	out, err := exec.Command("unshare", "--map-root-user", "--map-auto", "rm", "-rf", dir).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, out)
	}
	return nil
}

// Log returns the end of what the daemon has written.
func (n *Node) Log() string {
	if n.log == nil {
		return ""
	}
	return n.log.String()
}

// Command prepares a program of the user's session beside the daemon.
func (n *Node) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = n.Environ()
	cmd.WaitDelay = 2 * time.Second
	return cmd
}

// Subpod runs a command of the binary under test and returns its output.
func (n *Node) Subpod(args ...string) (string, error) {
	n.t.Helper()
	return n.output(n.subpod(), args...)
}

// MustSubpod is Subpod for a command that must succeed. Its output is without the white
// space around it.
func (n *Node) MustSubpod(args ...string) string {
	n.t.Helper()
	out, err := n.Subpod(args...)
	if err != nil {
		n.t.Fatalf("subpod %v: %v\n%s", args, err, out)
	}
	return strings.TrimSpace(out)
}

// TryEnter runs a command inside the node.
func (n *Node) TryEnter(argv ...string) (string, error) {
	n.t.Helper()
	return n.Subpod(append([]string{"nsenter", "--"}, argv...)...)
}

// Enter runs a command inside the node and returns its output; it must succeed.
func (n *Node) Enter(argv ...string) string {
	n.t.Helper()
	out, err := n.TryEnter(argv...)
	if err != nil {
		n.t.Fatal(err)
	}
	return out
}

// output returns standard output; the error carries standard error.
func (n *Node) output(name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	cmd := n.Command(ctx, name, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if err != nil {
		err = fmt.Errorf("%s %s: %w: %s", filepath.Base(name), strings.Join(args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return stdout.String(), err
}
