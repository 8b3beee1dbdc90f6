// Package cli tests the command line by scripts (testdata/script), against the
// real daemon.
package cli

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/subpod/subpod/tests/node"
	"github.com/subpod/subpod/tests/registry"
)

func TestMain(m *testing.M) { node.Main(m) }

// bridge is what the scripts expect.
const bridge = node.Bridge

// TestScripts runs all scripts against one daemon, some at the same time: a
// script gives its pods names that no other has, and removes them.
func TestScripts(t *testing.T) {
	private := privateRegistry(t)
	addr, pushed := node.Registry(t), node.EmptyRegistry(t)
	insecure := ""
	for _, location := range []string{private, pushed} {
		insecure += fmt.Sprintf("\n[[registry]]\nlocation = %q\ninsecure = true\n", location)
	}
	n := node.Start(t, node.Options{Config: bridge, Registries: registry.Conf(addr) + insecure})
	for _, image := range []string{"busybox", "registry.k8s.io/e2e-test-images/nonewprivs:1.3"} {
		if _, err := n.Subpod("pull", "-q", image); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := n.Subpod("run", "--rm", "busybox", "true"); err != nil { // warms up
		t.Fatal(err)
	}
	settle(t, n)
	before := n.Look()
	t.Run("script", func(t *testing.T) {
		runScripts(t, testscript.Params{
			Dir:   "testdata/script",
			Setup: setup(t, n, "PRIVATE="+private, "REGISTRY="+addr, "PUSHED="+pushed),
			Cmds:  commands,
			Condition: func(cond string) (bool, error) {
				if cond != "two-users" {
					return false, fmt.Errorf("unknown condition %q", cond)
				}
				ids, err := n.Subpod("unshare", "awk", "{ n += $3 } END { printf \"%d\", n / 65536 }", "/proc/self/uid_map")
				return strings.TrimSpace(ids) == "3", err // one is the node's own
			},
			// A command that hangs is killed, and shown.
			Deadline: time.Now().Add(15 * time.Minute),
		})
	})
	settle(t, n)
	n.NothingLeft(before)
}

// settle waits until no pod is left: those of "run --rm" are removed by the
// daemon once their container has ended.
func settle(t *testing.T, n *node.Node) {
	t.Helper()
	node.Eventually(t, "no pod is left", func() error {
		pods, err := n.Subpod("pods", "-q")
		if err == nil && pods != "" {
			err = fmt.Errorf("pods are left: %s", pods)
		}
		return err
	})
}

// TestWithoutDaemon: commands that start the daemon, and those that do not.
func TestWithoutDaemon(t *testing.T) {
	eachScript(t, "nodaemon", func(t *testing.T) *node.Node { return node.Prepare(t, node.Options{Config: bridge}) })
}

// alone has the scripts that act on all there is, or on the latest: each has a node of
// its own.
const alone = "alone"

func TestAlone(t *testing.T) { eachScript(t, alone, aloneNode) }

// eachScript runs the scripts of a directory one after the other, each with a node of its own.
func eachScript(t *testing.T, dir string, nodeOf func(*testing.T) *node.Node) {
	files, err := filepath.Glob(filepath.Join("testdata", dir, "*.txtar"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts in %s: %v", dir, err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			n := nodeOf(t)
			runScripts(t, testscript.Params{Files: []string{file}, Setup: setup(t, n), Cmds: commands, Deadline: time.Now().Add(5 * time.Minute)})
		})
	}
}

func aloneNode(t *testing.T) *node.Node {
	n := node.Start(t, node.Options{Config: bridge})
	if _, err := n.Subpod("pull", "-q", "busybox"); err != nil {
		t.Fatal(err)
	}
	return n
}

// runScripts is testscript.Run, which leaves its directory behind when a filter has
// left scripts out: that is in the test's own here.
func runScripts(t *testing.T, p testscript.Params) {
	const tmp = "GOTMPDIR"
	before := os.Getenv(tmp)
	defer os.Setenv(tmp, before)
	// t.Setenv refuses tests with parallel ones in them; the directory is made before
	// those begin.
	if err := os.Setenv(tmp, t.TempDir()); err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, p)
}

func setup(t *testing.T, n *node.Node, more ...string) func(*testscript.Env) error {
	bin := filepath.Dir(node.Path(t, node.Subpod))
	images, err := filepath.Abs(filepath.Join(node.Tree(), node.Images))
	if err != nil {
		t.Fatal(err)
	}
	return func(env *testscript.Env) error {
		path, err := filepath.Abs(bin)
		if err != nil {
			return err
		}
		vars := append([]string{
			"HOME=" + n.Home, "XDG_RUNTIME_DIR=" + n.XDG, "DATA=" + n.DataDir, "SOCKET=" + n.Socket, "IMAGES=" + images,
			"PATH=" + path + ":" + os.Getenv("PATH"), "TERM=dumb", "SHELL=/bin/sh",
		}, more...)
		for _, v := range []string{"SUBPOD_TEST_DIR"} { // the mark by which processes are found
			vars = append(vars, v+"="+os.Getenv(v))
		}
		for _, v := range vars {
			name, value, _ := strings.Cut(v, "=")
			env.Setenv(name, value)
		}
		return nil
	}
}

// commands of the scripts, beside those of testscript.
var commands = map[string]func(*testscript.TestScript, bool, []string){
	"exits":     exits,
	"pushindex": pushIndex,
	"waitfor":   waitFor,
	"signal":    signalBackground,
}

// exits CODE COMMAND...: the command ends with this code.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND [ARG...]")
	}
	err := ts.Exec("sh", append([]string{"-c", `want=$1; shift; "$@"; got=$?; [ $got = $want ] || { echo "exit code $got, not $want" >&2; exit 99; }`, "sh"}, args...)...)
	if err != nil {
		ts.Fatalf("%s\n%s: %v", ts.ReadFile("stdout"), ts.ReadFile("stderr"), err)
	}
}

// converge is how long waitfor waits.
var converge = node.Converge

// waitfor COMMAND...: repeats a command until it succeeds.
func waitFor(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) == 0 {
		ts.Fatalf("usage: waitfor COMMAND [ARG...]")
	}
	var err error
	for deadline := time.Now().Add(converge); time.Now().Before(deadline); {
		err = ts.Exec(args[0], args[1:]...)
		if (err == nil) != neg {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	ts.Fatalf("%s: not within %v: %v\n%s%s", strings.Join(args, " "), converge, err, ts.ReadFile("stdout"), ts.ReadFile("stderr"))
}

// signal SIGNAL: to the last background command of the script.
func signalBackground(ts *testscript.TestScript, neg bool, args []string) {
	background := ts.BackgroundCmds()
	if len(args) != 1 || len(background) == 0 {
		ts.Fatalf("usage: signal SIGNAL, with a command in the background")
	}
	pid := background[len(background)-1].Process.Pid
	if err := ts.Exec("kill", "-"+args[0], fmt.Sprint(pid)); err != nil {
		ts.Fatalf("kill: %v", err)
	}
}

// privateRegistry wants the user "me" with the password "secret".
func privateRegistry(t *testing.T) string {
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, ok := r.BasicAuth(); !ok || user != "me" || password != "secret" {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
		}
	}))
	s.Listener.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.Listener = l
	s.Start()
	t.Cleanup(s.Close)
	return l.Addr().String()
}
