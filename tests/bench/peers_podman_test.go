package bench

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/tests/node"
)

// podman is podman in its own Debian, as the test user.
type podman struct {
	agent
	*peer
}

// call runs podman, and measures it where a name is given.
func (p podman) call(name string, args ...string) (string, error) {
	// The directories of cgroups are nobody's here, as for everybody else.
	argv := append([]string{"podman", "--log-level=error", "--cgroup-manager=cgroupfs", "--events-backend=file"}, args...)
	a, err := p.run(argv...)
	if err == nil && name != "" {
		p.Took.add(name, a.Took)
	}
	return strings.TrimSpace(a.Out), err
}

func (p podman) must(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := p.call(name, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// start is a container of its own network, which is what a pod with one container
// consists of: podman's pods have one more.
func (p podman) start(name, into, ref string, more ...string) error {
	args := append([]string{"run", "--detach", "--cgroups=disabled", "--network=pasta", "--name", name}, more...)
	_, err := p.call(into, append(append(args, ref), workload...)...)
	return err
}

// measurePodman measures what measureSubpod does, by the command: podman has no daemon.
func measurePodman(t *testing.T, reg string, images map[string][]string) *peer {
	socket := os.Getenv(agentEnv)
	if socket == "" {
		t.Log("podman is left out: it takes root to enter a Debian that has it")
		return nil
	}
	p := podman{agent(socket), &peer{Took: series{}, Ways: map[string]wayTook{}}}
	p.Name = "podman " + strings.TrimPrefix(p.must(t, "", "version", "--format", "{{.Client.Version}}"), "v")
	ref := reg + "/docker.io/library/busybox:latest"
	p.must(t, "", "pull", "--quiet", "--tls-verify=false", ref)
	t.Cleanup(func() {
		for _, args := range [][]string{{"rm", "--all", "--force", "--time=0"}, {"rmi", "--all", "--force"}} {
			if _, err := p.call("", args...); err != nil {
				t.Error(err)
			}
		}
	})
	for i := range max(*runs/2, 1) + 1 {
		name := fmt.Sprint("one-", i)
		took := p.peer.Took
		if i == 0 {
			p.peer.Took = series{} // warms up
		}
		begin := time.Now()
		if err := p.start(name, up, ref); err != nil {
			t.Fatal(err)
		}
		p.must(t, execSync, "exec", name, "true")
		p.must(t, stop, "stop", "--time=10", name)
		p.must(t, remove, "rm", name)
		p.peer.Took.add(whole, time.Since(begin))
		p.must(t, runRemoved, "run", "--rm", "--cgroups=disabled", "--network=pasta", ref, "true")
		p.peer.Took = took
	}
	p.many(t, ref)
	settle(t, os.TempDir())
	for name, refs := range images {
		for _, ref := range refs {
			unix.Sync()
			p.must(t, name, "pull", "--quiet", "--tls-verify=false", ref)
		}
	}
	for _, refs := range images {
		p.must(t, "", append([]string{"rmi"}, refs...)...)
	}
	p.ways(t, ref)
	p.scale(t, ref)
	return p.peer
}

func (p podman) pss(t *testing.T) int {
	t.Helper()
	a, err := p.run(agentPSS)
	if err != nil {
		t.Fatal(err)
	}
	return a.PSS
}

func (p podman) many(t *testing.T, ref string) {
	p.Idle = p.pss(t)
	begin := time.Now()
	err := inParallel(*pods, *concurrency, func(i int) error { return p.start(fmt.Sprint("many-", i), "", ref) })
	p.Many = time.Since(begin)
	if err != nil {
		t.Fatal(err)
	}
	p.PodPSS = (p.pss(t) - p.Idle) / *pods
	p.must(t, "", "rm", "--all", "--force", "--time=0")
}

func (p podman) scale(t *testing.T, ref string) {
	for i := range *otherScale {
		took := series{}
		was := p.peer.Took
		p.peer.Took = took
		err := p.start(fmt.Sprint("scale-", i), up, ref)
		p.peer.Took = was
		if err != nil {
			t.Errorf("container %d: %v", i, err)
			break
		}
		p.Up = append(p.Up, took[up]...)
	}
	p.must(t, "", "rm", "--all", "--force", "--time=0")
}

// podmanPlace is a container's network namespace.
type podmanPlace struct{ socket, pid string }

func (p podmanPlace) argv(args ...string) []string {
	exe, err := os.Executable()
	if err != nil {
		exe = os.Args[0]
	}
	if args[0] == exe {
		args = append([]string{"bench"}, args[1:]...) // run.sh has put it there
	}
	return append([]string{exe, relayArg, p.socket, "nsenter", "--target", p.pid, "--user", "--preserve-credentials", "--net", "--"}, args...)
}

func (p podman) ways(t *testing.T, ref string) {
	// For its directories and environment only.
	n := node.Prepare(t, node.Options{})
	port := int(freePorts(t, 4))
	// pasta's way from a container to the host: its address as the container sees it.
	if err := p.start("net", "", ref, "--publish", fmt.Sprintf("127.0.0.1:%d:%d", port, wayPort)); err != nil {
		t.Fatal(err)
	}
	in := podmanPlace{string(p.agent), p.must(t, "", "inspect", "--format", "{{.State.Pid}}", "net")}
	if _, err := strconv.Atoi(in.pid); err != nil {
		t.Fatalf("podman inspect: %v", err)
	}
	hosts := p.must(t, "", "exec", "net", "cat", "/etc/hosts")
	host := ""
	for line := range strings.Lines(hosts) {
		if f := strings.Fields(line); len(f) > 1 && f[1] == "host.containers.internal" {
			host = f[0]
		}
	}
	if host == "" {
		t.Fatalf("no address of the host: %s", hosts)
	}
	net := wayBench{t: t, n: n, took: p.Ways}
	net.both(wayOut, in, onHost{}, host, port+1, port+1)
	net.both(wayIn, onHost{}, in, "127.0.0.1", wayPort, port)
	p.must(t, "", "rm", "--force", "--time=0", "net")
}
