package fields

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/subpod/subpod/tests/node"
)

// crictl calls subcommands and remembers which.
type crictl struct {
	env
	done map[string]bool
}

func (c *crictl) do(args ...string) string {
	c.Helper()
	c.done[args[0]] = true
	return c.n.Crictl(args...)
}

// fails calls a subcommand that must fail with a word in its message.
func (c *crictl) fails(word string, args ...string) {
	c.Helper()
	c.done[args[0]] = true
	out, err := c.n.TryCrictl(args...)
	if err == nil || !strings.Contains(err.Error(), word) {
		c.Errorf("crictl %s: %q, %v; want a failure with %q", strings.Join(args, " "), out, err, word)
	}
}

// TestCrictl goes through every subcommand that crictl lists in its help.
func TestCrictl(t *testing.T) {
	n := node.Start(t, node.Options{Config: bridge})
	c := &crictl{env: env{T: t, n: n, cri: n.CRI()}, done: map[string]bool{}}
	c.contains("version", c.do("version"), "RuntimeName:  subpod")
	c.contains("info", c.do("info"), "RuntimeReady")
	c.contains("runtime-config", c.do("runtime-config"), "CGROUPFS")
	c.do("update-runtime-config", "--pod-cidr", "10.77.0.0/24")
	c.contains("pull", c.do("pull", busybox), "Image is up to date")
	c.contains("images", c.do("images"), "busybox")
	c.contains("inspecti", c.do("inspecti", busybox), "repoTags")
	c.contains("imagefsinfo", c.do("imagefsinfo"), "usedBytes")

	config := c.podFor("crictl", func(p *podConfig) { p.Labels = map[string]string{"by": "crictl"} })
	c.must(os.MkdirAll(config.LogDirectory, 0o700))
	podFile := n.File("pod.json", config)
	ctrFile := n.File("ctr.json", ctrFor("main", sh("while read line; do echo got $line; done; sleep 1000"), func(c *ctrConfig) { c.Stdin = true }))
	pod := c.do("runp", podFile)
	c.contains("address of the pod CIDR", c.do("inspectp", pod), "10.77.0.")
	ctr := c.do("create", pod, ctrFile, podFile)
	c.equal("start", c.do("start", ctr), ctr)
	c.contains("pods", c.do("pods", "--label", "by=crictl"), pod[:13])
	c.contains("ps", c.do("ps"), ctr[:13])
	c.contains("inspect", c.do("inspect", ctr), "CONTAINER_RUNNING")
	c.contains("exec", c.do("exec", "-s", ctr, "echo", "in sync"), "in sync")
	c.contains("exec, streaming", c.do("exec", ctr, "echo", "by stream"), "by stream")
	c.attach(ctr)
	c.contains("logs", c.do("logs", ctr), "got it")
	c.do("update", "--cpu-share", "512", ctr)
	c.contains("limits after an update", c.do("inspect", ctr), `"cpuShares": "512"`)
	c.contains("stats", c.do("stats", "-o", "json", ctr), "usageCoreNanoSeconds")
	c.contains("statsp", c.do("statsp", "-o", "json", "--id", pod), "usageCoreNanoSeconds")
	c.contains("metricdescs", c.do("metricdescs"), "container_cpu_usage_seconds_total")
	c.contains("metricsp", c.do("metricsp"), pod, "container_memory_working_set_bytes")
	c.fails("CRIU", "checkpoint", "--export", filepath.Join(n.Dir, "checkpoint.tar"), ctr)
	c.portForward(pod)
	c.events()
	c.equal("stop", c.do("stop", "-t", "1", ctr), ctr)
	c.equal("rm", c.do("rm", ctr), ctr)
	c.do("stopp", pod)
	c.do("rmp", pod)

	run := c.podFor("crictl-run", nil)
	c.must(os.MkdirAll(run.LogDirectory, 0o700))
	id := c.do("run", "--runtime", "runc", n.File("run-ctr.json", ctrFor("run", sh("echo run"))), n.File("run-pod.json", run))
	eventually(c, "what run has started ends", func() error {
		if !strings.Contains(n.Crictl("inspect", id), "CONTAINER_EXITED") {
			return os.ErrNotExist
		}
		return nil
	})
	c.contains("rmp of all", c.do("rmp", "-a", "-f"), "Removed sandbox")
	c.contains("rmi", c.do("rmi", busybox), "Deleted")
	c.contains("completion", c.do("completion", "bash"), "complete")
	c.config()
	c.contains("help", c.do("help"), "COMMANDS")

	for _, command := range commands(c.do("help")) {
		if !c.done[command] {
			t.Errorf("crictl %s was not tried", command)
		}
	}
}

// commands reads crictl's list of its subcommands.
func commands(help string) (list []string) {
	_, rest, _ := strings.Cut(help, "COMMANDS:\n")
	rest, _, _ = strings.Cut(rest, "GLOBAL OPTIONS:")
	for line := range strings.Lines(rest) {
		if f := strings.Fields(line); len(f) > 0 {
			list = append(list, strings.Trim(f[0], ","))
		}
	}
	return list
}

func (c *crictl) attach(ctr string) {
	c.Helper()
	c.done["attach"] = true
	cmd := c.n.CrictlCommand(c.Context(), "attach", "-i", ctr)
	in, err := cmd.StdinPipe()
	c.must(err)
	c.must(cmd.Start())
	_, err = in.Write([]byte("it\n"))
	c.must(err)
	eventually(c, "what was typed is in the log", func() error {
		if !strings.Contains(c.n.Crictl("logs", ctr), "got it") {
			return os.ErrNotExist
		}
		return nil
	})
	cmd.Process.Kill()
	cmd.Wait()
}

func (c *crictl) portForward(pod string) {
	c.Helper()
	c.done["port-forward"] = true
	ctx, cancel := context.WithTimeout(c.Context(), node.Converge)
	defer cancel()
	cmd := c.n.CrictlCommand(ctx, "port-forward", pod, ":80")
	out, err := cmd.StdoutPipe()
	c.must(err)
	c.must(cmd.Start())
	line := make([]byte, 200)
	n, err := out.Read(line)
	c.must(err)
	c.contains("port-forward", string(line[:n]), "Forwarding from 127.0.0.1:")
	cmd.Process.Kill()
	cmd.Wait()
}

func (c *crictl) events() {
	c.Helper()
	c.done["events"] = true
	ctx, cancel := context.WithTimeout(c.Context(), node.Converge)
	defer cancel()
	cmd := c.n.CrictlCommand(ctx, "events")
	out, err := cmd.StdoutPipe()
	c.must(err)
	c.must(cmd.Start())
	told := make(chan string, 1)
	go func() {
		line := make([]byte, 4096)
		n, _ := out.Read(line)
		told <- string(line[:n])
	}()
	// crictl does not say when it listens: pods come until one is told of.
	for waiting := true; waiting; {
		c.pod("event", nil).remove()
		select {
		case text := <-told:
			c.contains("events", text, "CONTAINER_")
			waiting = false
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			c.Error("crictl events tells of nothing")
			waiting = false
		}
	}
	cmd.Process.Kill()
	cmd.Wait()
}

// config is about crictl's own file.
func (c *crictl) config() {
	c.Helper()
	c.done["config"] = true
	file := filepath.Join(c.n.Dir, "crictl.yaml")
	c.must(os.WriteFile(file, nil, 0o600))
	cmd := c.n.Command(c.Context(), node.Path(c, node.Crictl), "--config", file, "config", "--set", "runtime-endpoint=unix://"+c.n.Socket)
	if out, err := cmd.CombinedOutput(); err != nil {
		c.Errorf("crictl config: %v: %s", err, out)
	}
	out, err := c.n.Command(c.Context(), node.Path(c, node.Crictl), "--config", file, "version").CombinedOutput()
	if err != nil || !strings.Contains(string(out), "subpod") {
		c.Errorf("crictl by its file: %v: %s", err, out)
	}
}
