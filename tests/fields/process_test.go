package fields

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestProcess(t *testing.T) {
	start(t, []string{byName}, func(e env) {
		p := e.pod("process", func(c *podConfig) { c.Hostname = "worker" })
		value := "two\nlines = \"ünïcode\" \t$HOME \\ '"
		c := p.start("env", idle(), func(c *ctrConfig) {
			c.WorkingDir = "/made/by/the/runtime"
			c.Envs = []*runtimeapi.KeyValue{
				{Key: "BYTES", Value: []byte(value)}, {Key: "EMPTY"},
				{Key: "TWICE", Value: []byte("first")}, {Key: "TWICE", Value: []byte("last")},
				{Key: "with.dots-and-dashes", Value: []byte("x")},
			}
		})
		var env []string
		// The kernel shows it empty for the last microseconds of execve(2).
		eventually(e, "the environment is there", func() error {
			if env = strings.Split(c.begun().exec("cat", "/proc/1/environ"), "\x00"); len(env) < 2 {
				return os.ErrNotExist
			}
			return nil
		})
		for _, want := range []string{"BYTES=" + value, "EMPTY=", "TWICE=last", "HOSTNAME=worker", "with.dots-and-dashes=x"} {
			found := 0
			for _, v := range env {
				if v == want {
					found++
				}
			}
			if found != 1 {
				e.Errorf("%d variables %q in %q, want 1", found, want, env)
			}
		}
		e.contains("PATH of the image", strings.Join(env, "\n"), "PATH=/usr/local/sbin:")
		e.equal("working_dir", c.exec("readlink", "/proc/1/cwd"), "/made/by/the/runtime")
		e.equal("working_dir of an exec", c.exec("pwd"), "/made/by/the/runtime")
		e.equal("variable in an exec", c.sh(`printf %s "$TWICE"`), "last")
		for what, edit := range map[string]change{
			"bytes that are not UTF-8": func(c *ctrConfig) { c.Envs = []*runtimeapi.KeyValue{{Key: "X", Value: []byte{0xff, 0xfe}}} },
			"a zero byte":              func(c *ctrConfig) { c.Envs = []*runtimeapi.KeyValue{{Key: "X", Value: []byte("a\x00b")}} },
			"a name with =":            func(c *ctrConfig) { c.Envs = []*runtimeapi.KeyValue{{Key: "X=Y"}} },
			"an empty name":            func(c *ctrConfig) { c.Envs = []*runtimeapi.KeyValue{{Value: []byte("x")}} },
			"no image":                 func(c *ctrConfig) { c.Image = nil },
			"no metadata":              func(c *ctrConfig) { c.Metadata = nil },
			"a log outside":            func(c *ctrConfig) { c.LogPath = "../../x.log" },
		} {
			_, err := p.tryCreate("refused", idle(), edit)
			e.refused(what, err, codes.InvalidArgument)
		}

		args := func(name string, command, args []string) string {
			return strings.TrimSpace(p.start(name, func(c *ctrConfig) { c.Command, c.Args = command, args }).log())
		}
		e.equal("command and args", args("both", []string{"echo", "a"}, []string{"b c"}), "a b c")
		e.equal("command alone leaves out the image's arguments", args("command", []string{"echo"}, nil), "")
		e.equal("args alone", args("args", nil, []string{"echo", "x"}), "x")
	})
}

func TestStopSignal(t *testing.T) {
	start(t, nil, func(e env) {
		p := e.pod("signal", nil)
		trap := sh("trap 'exit 11' USR1; trap 'exit 12' TERM; trap 'exit 13' QUIT; trap 'exit 14' 37; echo ready; while :; do sleep 0.05; done")
		for _, c := range []struct {
			name   string
			signal runtimeapi.Signal
			shown  string
			code   int32
		}{
			{"default", runtimeapi.Signal_SIGNAL_RUNTIME_DEFAULT, "SIGTERM", 12},
			{"usr1", runtimeapi.Signal_SIGNAL_SIGUSR1, "SIGUSR1", 11},
			{"quit", runtimeapi.Signal_SIGNAL_SIGQUIT, "SIGQUIT", 13},
			{"real-time", runtimeapi.Signal_SIGNAL_SIGRTMINPLUS3, "SIGRTMINPLUS3", 14},
		} {
			c1 := p.start(c.name, trap, func(cfg *ctrConfig) { cfg.StopSignal = c.signal })
			eventually(e, "the container is ready", func() error {
				_, err := os.Stat(c1.status().LogPath)
				if data, _ := os.ReadFile(c1.status().LogPath); err == nil && !strings.Contains(string(data), "ready") {
					err = os.ErrNotExist
				}
				return err
			})
			e.equal(c.name+": signal in the status", c1.status().StopSignal, "SIGNAL_"+c.shown)
			// Without an effect of the signal it is killed after the grace period, with 137.
			c1.stop(30)
			e.equal(c.name+": exit code", c1.exited().ExitCode, c.code)
		}
	})
}

func TestLogs(t *testing.T) {
	start(t, nil, func(e env) {
		p := e.pod("logs", nil)
		c := p.start("deep", sh("echo out; echo err >&2; printf partial"), func(c *ctrConfig) { c.LogPath = "a/b/0.log" })
		s := c.exited()
		e.equal("log path", s.LogPath, filepath.Join(p.config.LogDirectory, "a/b/0.log"))
		data, err := os.ReadFile(s.LogPath)
		e.must(err)
		e.contains("log", string(data), " stdout F out\n", " stderr F err\n", " stdout P partial")
		c = p.start("none", sh("echo unheard"), func(c *ctrConfig) { c.LogPath = "" })
		e.equal("log path without log_path", c.exited().LogPath, "")
		silent := e.pod("silent", func(c *podConfig) { c.LogDirectory = "" })
		e.equal("log path without log_directory", silent.start("c", sh("echo unheard")).exited().LogPath, "")

		tty := p.start("tty", sh("tty; stty -a | head -n 1; echo to the terminal"), func(c *ctrConfig) { c.Tty = true })
		text := tty.log()
		e.contains("log of a terminal", text, "/dev/pts/0", "to the terminal")
		_, err = e.cri.ReopenContainerLog(e.Context(), &runtimeapi.ReopenContainerLogRequest{ContainerId: tty.id})
		e.refused("reopen of an exited container's log", err, codes.FailedPrecondition)
		_, err = e.cri.ReopenContainerLog(e.Context(), &runtimeapi.ReopenContainerLogRequest{ContainerId: "0123"})
		e.refused("reopen of no container's log", err, codes.NotFound)
		run := p.start("run", sh("while :; do echo tick; sleep 0.05; done"))
		path := run.status().LogPath
		e.must(os.Rename(path, path+".1"))
		_, err = e.cri.ReopenContainerLog(e.Context(), &runtimeapi.ReopenContainerLogRequest{ContainerId: run.id})
		e.must(err)
		_, err = os.Stat(path)
		e.must(err)
	})
}

// TestStdin: what a client that attaches writes is the container's standard input;
// its end is the container's only with stdin_once.
func TestStdin(t *testing.T) {
	start(t, nil, func(e env) {
		p := e.pod("stdin", nil)
		attach := func(c *container, input string) {
			e.Helper()
			cmd := e.n.CrictlCommand(e.Context(), "attach", "-i", c.id)
			cmd.Stdin = strings.NewReader(input)
			out, err := cmd.CombinedOutput()
			if err != nil {
				e.Errorf("attach: %v: %s", err, out)
			}
		}
		with := func(stdin, once bool) change {
			return func(c *ctrConfig) { c.Stdin, c.StdinOnce = stdin, once }
		}
		once := p.start("once", sh("cat >/tmp/in; echo got $(cat /tmp/in)"), with(true, true))
		attach(once, "all of it")
		e.contains("log with stdin_once", once.log(), "got all of it")

		open := p.start("open", sh("while read line; do echo heard $line; [ $line != quit ] || exit 5; done; exit 6"), with(true, false))
		done := make(chan struct{})
		go func() { defer close(done); attach(open, "first\n") }()
		eventually(e, "the first line is heard", func() error {
			data, err := os.ReadFile(open.status().LogPath)
			if err == nil && !strings.Contains(string(data), "heard first") {
				err = os.ErrNotExist
			}
			return err
		})
		e.equal("state after the client's end of input", open.status().State, "CONTAINER_RUNNING")
		attach(open, "quit\n")
		e.equal("exit code", open.exited().ExitCode, 5)
		<-done

		closed := p.start("closed", sh("cat; echo at the end"))
		e.contains("log without stdin", closed.log(), "at the end")
	})
}
