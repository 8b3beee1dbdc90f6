package kubernetes

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/subpod/subpod/tests/node"
)

// What hosts.sh says.
var (
	host   = flag.Int("host", 0, "the number of this host")
	shared = flag.String("shared", "", "the directory that all hosts see")
)

// hosts is how many there are: a control plane and the workers.
const hosts = 3

// flannelPort is that of flannel's VXLAN, which nothing listens on before the last rows.
const flannelPort = "udp:8472"

// hostCluster is the control plane's, which TestHosts makes; hostRows are asserted on it.
type hostCluster struct {
	*cluster
	networkCalls  int
	withoutTunnel bool
}

// A request is what a worker's host is asked for: a command beside the daemon, or one of
// the actions.
type request struct {
	Action string // "" is a command; "kill" and "run" are of the daemon; "stop tunnel"
	Argv   []string
}

type answer struct{ Out, Err string }

func hostName(n int) string         { return fmt.Sprintf("host%d", n) }
func hostAddr(n int) string         { return fmt.Sprintf("192.0.2.%d", n) }
func socketOf(n int) string         { return filepath.Join(*shared, fmt.Sprintf("%d.sock", n)) }
func sharedFile(name string) string { return filepath.Join(*shared, name) }

// TestHosts makes a cluster of hosts with addresses of their own (hosts.sh).
func TestHosts(t *testing.T) {
	switch {
	case *host == 0:
		t.Skip("hosts are made by tests/kubernetes/hosts.sh, by root: make test-kubernetes-hosts")
	case *host > 1:
		serveHost(t)
		return
	}
	c := startCluster(t, hostName(1), []string{"tcp:6443", flannelPort}, "--node-ip", hostAddr(1))
	c.kubectl("apply", "-f", "/etc/kubernetes/subpod/tunnel.yaml")
	c.keepTunnel()
	command, err := c.in("", "kubeadm", "--kubeconfig=/etc/kubernetes/admin.conf", "token", "create", "--print-join-command")
	must(t, err)
	c.write(sharedFile("join.new"), command)
	must(t, os.Rename(sharedFile("join.new"), sharedFile("join")))
	hc = &hostCluster{cluster: c}
	assert(t, c, hostRows)
	if *keep {
		t.Logf("kept: HOME=%s XDG_RUNTIME_DIR=%s", c.Home, c.XDG)
		_, _ = os.Stdin.Read(make([]byte, 1))
	}
}

// hc is the one cluster of TestHosts.
var hc *hostCluster

// keepTunnel does what the tunnel's unit does.
func (c *cluster) keepTunnel() {
	c.t.Helper()
	c.stopTunnel = c.keepRunning("tunnel", "kubernetes", "tunnel")
}

// serveHost is a worker's host: it joins, and does what the test asks for until that ends.
func serveHost(t *testing.T) {
	t.Cleanup(func() {
		if t.Failed() {
			_ = os.WriteFile(sharedFile("failed"), nil, 0o644) // nobody need wait for it
		}
	})
	join := waitFor(t, "join")
	if join == "" {
		return // the control plane failed
	}
	words := regexp.MustCompile(`join (\S+) --token (\S+) .*(sha256:\S+)`).FindStringSubmatch(join)
	if words == nil {
		t.Fatal(errors.New("kubeadm prints " + join))
	}
	w := newNode(t, hostName(*host), []string{"services", flannelPort}, "--node-ip", hostAddr(*host), "--server", words[1], "--token", words[2], "--ca-cert-hash", words[3])
	w.kubeadm("join", "--config=/etc/kubernetes/subpod/join.yaml")
	w.keepTunnel()
	l, err := net.Listen("unix", socketOf(*host))
	must(t, err)
	must(t, os.Chmod(socketOf(*host), 0o777))
	server := &http.Server{Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		var q request
		if err := json.NewDecoder(r.Body).Decode(&q); err != nil {
			t.Error(err)
		}
		out, err := w.serve(q)
		a := answer{Out: out}
		if err != nil {
			a.Err = err.Error()
		}
		_ = json.NewEncoder(rw).Encode(a)
	})}
	go func() { _ = server.Serve(l) }()
	waitFor(t, "end")
	server.Close()
}

// waitFor waits for a file of the shared directory, or its end, and returns what it has.
func waitFor(t *testing.T, name string) string {
	t.Helper()
	for {
		data, err := os.ReadFile(sharedFile(name))
		if err == nil {
			return strings.TrimSpace(string(data))
		}
		if _, end := os.Stat(sharedFile("end")); end == nil || !errors.Is(err, os.ErrNotExist) {
			return ""
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func (c *cluster) serve(q request) (string, error) {
	switch q.Action {
	case "":
		ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
		defer cancel()
		var stderr bytes.Buffer
		if q.Argv[0] == "subpod" {
			q.Argv[0] = node.Path(c.t, node.Subpod)
		}
		cmd := c.Command(ctx, q.Argv[0], q.Argv[1:]...)
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			err = fmt.Errorf("%w: %s", err, strings.TrimSpace(stderr.String()))
		}
		return strings.TrimSpace(string(out)), err
	case "kill":
		err := syscall.Kill(c.PID(), syscall.SIGKILL)
		return "", errors.Join(err, ignoreExit(c.Wait(time.Minute)))
	case "run":
		c.Run()
		return "", nil
	case "stop tunnel":
		c.stopTunnel()
		return "", nil
	}
	return "", fmt.Errorf("no action %q", q.Action)
}

// ignoreExit leaves the error of a wait that was in vain.
func ignoreExit(err error) error {
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return nil
	}
	return err
}

// ask asks a worker's host.
func ask(n int, q request) (string, error) {
	client := http.Client{Timeout: 2 * callTimeout, Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", socketOf(n))
		}}}
	body, err := json.Marshal(q)
	if err != nil {
		return "", err
	}
	resp, err := client.Post("http://host/", "application/json", bytes.NewReader(body))
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	var a answer
	if err := json.NewDecoder(resp.Body).Decode(&a); err != nil {
		return "", err
	}
	if a.Err != "" {
		return a.Out, fmt.Errorf("host %d: %q %s: %s", n, q.Argv, q.Action, a.Err)
	}
	return a.Out, nil
}

// on runs a command on a worker's host, beside its daemon.
func on(n int, argv ...string) (string, error) { return ask(n, request{Argv: argv}) }

// network asks hosts.sh for "cut N" or "join N".
func (c *cluster) network(what string) {
	c.t.Helper()
	hc.networkCalls++
	line := fmt.Sprintf("%s %d", what, hc.networkCalls)
	f, err := os.OpenFile(sharedFile("network"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	must(c.t, err)
	_, err = fmt.Fprintln(f, line)
	must(c.t, errors.Join(err, f.Close()))
	c.eventually(func() error {
		done, err := os.ReadFile(sharedFile("network.done"))
		if err == nil && strings.TrimSpace(string(done)) != line {
			err = errors.New("the network is as before")
		}
		return err
	})
}
