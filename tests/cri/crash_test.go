package cri

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/subpod/subpod/tests/node"
)

// killServer kills the server and waits until another one serves.
func killServer(t *testing.T, n *node.Node) {
	t.Helper()
	old := n.For(t).Server()
	if err := syscall.Kill(old, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "another server serves", func() error {
		_, err := n.TryCrictl("version")
		if err == nil && n.For(t).Server() == old {
			err = errors.New("the old one still does")
		}
		return err
	})
}

// TestKillServer: pods, containers, logs and exit codes outlive the server.
func TestKillServer(t *testing.T) {
	n := node.Start(t, node.Options{})
	n.Crictl("pull", busybox)
	n.Crictl("pull", nginx)
	noLeaks(t, n)
	p := runPod(t, n, "survivor", nil)
	created := p.create("created", []string{"true"})
	running := p.run("running", sh("i=0; while :; do i=$((i+1)); echo tick $i; sleep 0.05; done"))
	ended := p.run("ended", sh("echo last words; exit 11"))
	waitExited(t, n, ended)
	// This one ends while no server is there to see it.
	dying := p.run("dying", sh("while [ ! -e /tmp/go ]; do sleep 0.02; done; sleep 0.3; echo gone; exit 12"))
	web := p.run("web", nil, obj{"image": obj{"image": nginx}})
	address := p.ip()
	before := map[string]string{}
	for _, id := range []string{created, running, ended, web} {
		before[id] = identity(inspect(n, id))
	}
	n.Crictl("exec", "-s", dying, "touch", "/tmp/go")
	killServer(t, n)

	for id, want := range before {
		if got := identity(inspect(n, id)); got != want {
			t.Errorf("before: %s\nafter:  %s", want, got)
		}
	}
	if s := waitExited(t, n, dying).Status; s.ExitCode != 12 || s.Reason != "Error" {
		t.Errorf("what ended meanwhile: exit code %d, reason %q; want 12, Error", s.ExitCode, s.Reason)
	}
	expect(t, "log of what ended meanwhile", n.Crictl("logs", dying), "gone")
	expect(t, "log of what had ended", n.Crictl("logs", ended), "last words")
	if got := p.ip(); got != address {
		t.Errorf("the pod's address was %s and is %s", address, got)
	}
	expect(t, "exec", n.Crictl("exec", "-s", running, "echo", "still here"), "still here")
	noGaps(t, n.Crictl("logs", running))
	expect(t, "the network", n.Crictl("exec", "-s", running, "wget", "-qO-", "-T", "5", "http://"+address), "Welcome to nginx")
	n.Crictl("start", created)
	if s := waitExited(t, n, created).Status; s.ExitCode != 0 || s.Reason != "Completed" {
		t.Errorf("what was created before and started after: %d, %q", s.ExitCode, s.Reason)
	}
	other := runPod(t, n, "newcomer", nil)
	if other.ip() == address {
		t.Errorf("the address %s was given out twice", address)
	}
	n.Crictl("stop", "-t", "1", running)
	if s := inspect(n, running).Status; s.State != "CONTAINER_EXITED" {
		t.Errorf("after stop: %s", s.State)
	}
	if sub := n.Crictl("runp", p.config); sub != p.id {
		t.Errorf("runp of the surviving pod made another one: %s", sub)
	}
}

// identity is what must not change in a container's status.
func identity(s containerStatus) string {
	c := s.Status
	return fmt.Sprintf("%s %s created %s started %s finished %s code %d reason %q image %s",
		c.Metadata.Name, c.State, c.CreatedAt, c.StartedAt, c.FinishedAt, c.ExitCode, c.Reason, c.ImageRef)
}

func noGaps(t *testing.T, log string) {
	t.Helper()
	for i, line := range strings.Split(strings.TrimSpace(log), "\n") {
		if line != fmt.Sprintf("tick %d", i+1) {
			t.Fatalf("line %d of the log is %q", i+1, line)
		}
	}
}

// TestKillServerDuringWork: the server is killed at many moments of a pod's life.
// What was answered is true afterwards, and what was not can be done or removed.
func TestKillServerDuringWork(t *testing.T) {
	n := node.Start(t, node.Options{})
	n.Crictl("pull", busybox)
	noLeaks(t, n)
	for i := range 8 {
		name := fmt.Sprintf("victim-%d", i)
		kill := time.AfterFunc(time.Duration(i)*12*time.Millisecond, n.KillServer)
		config := podConfig(n, name)
		if err := os.MkdirAll(config["log_directory"].(string), 0o700); err != nil {
			t.Fatal(err)
		}
		podFile := n.File("pod-"+name+".json", config)
		containerFile := n.File("container-"+name+".json", containerConfig("c", sh("echo hi; exit 3")))
		// crictl gives up when the server dies under it: the caller tries again, as
		// the kubelet does.
		podID := retry(t, n, "runp", podFile)
		id := retry(t, n, "create", podID, containerFile, podFile)
		if _, err := n.TryCrictl("start", id); err != nil {
			eventually(t, "start", func() error {
				if s, err := n.TryCrictl("inspect", "-o", "json", id); err == nil && !strings.Contains(s, "CONTAINER_CREATED") {
					return nil
				}
				_, err := n.TryCrictl("start", id)
				return err
			})
		}
		kill.Stop()
		eventually(t, "the container ends", func() error {
			out, err := n.TryCrictl("inspect", "-o", "json", id)
			if err == nil && !strings.Contains(out, `"exitCode": 3`) {
				err = fmt.Errorf("%s", out)
			}
			return err
		})
		retry(t, n, "rmp", "-f", podID)
		eventually(t, "the server is back", func() error { _, err := n.TryCrictl("version"); return err })
	}
	if out := n.Crictl("pods", "-q"); out != "" {
		t.Errorf("pods at the end: %s", out)
	}
	if out := n.Crictl("ps", "-aq"); out != "" {
		t.Errorf("containers at the end: %s", out)
	}
}

func retry(t *testing.T, n *node.Node, args ...string) (out string) {
	t.Helper()
	eventually(t, args[0], func() (err error) {
		out, err = n.TryCrictl(args...)
		out = strings.TrimSpace(out)
		return err
	})
	return out
}

// TestRestartDaemon: a stop and a start are a reboot of the node: what ran has
// ended, records and images are there, and the pod can be removed.
func TestRestartDaemon(t *testing.T) {
	n := node.Start(t, node.Options{})
	n.Crictl("pull", busybox)
	p := runPod(t, n, "reboot", nil)
	id := p.run("c", sleeper())
	n.Stop()
	n.Run()
	s := inspect(n, id).Status
	if s.State != "CONTAINER_EXITED" {
		t.Errorf("state after a reboot: %s", s.State)
	}
	expect(t, "pods", n.Crictl("pods", "--id", p.id), "NotReady")
	expect(t, "images", n.Crictl("images"), "busybox")
	n.Crictl("rmp", p.id)
	again := runPod(t, n, "reboot", nil)
	again.run("c", sleeper())
	expect(t, "pods", n.Crictl("pods", "-q"), again.id)
}
