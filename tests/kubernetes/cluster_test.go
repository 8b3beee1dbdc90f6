// Package kubernetes makes a cluster of unmodified Kubernetes programs in a node of its
// own, as an ordinary user, by kubeadm and the configuration that "subpod kubernetes
// config" prints, and asserts the rows of table.txt on it ("make test-kubernetes").
package kubernetes

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/subpod/subpod/tests/node"
)

// programs is where build.sh has left what it has built; keep leaves the cluster until
// its standard input ends, for a look at it.
var (
	programs = flag.String("programs", "", "the directory that tests/kubernetes/build.sh prints")
	keep     = flag.Bool("keep", false, "keep the cluster until standard input ends")
	row      = flag.String("row", "", "rows to assert, as a regular expression")
)

func TestMain(m *testing.M) { node.Main(m) }

// Limits on waiting. They only end a test that would wait forever.
const (
	initTimeout  = 8 * time.Minute
	readyTimeout = 5 * time.Minute
	rowTimeout   = 2 * time.Minute
	callTimeout  = time.Minute
)

// cluster is a node of subpod with a control plane in it.
type cluster struct {
	*node.Node
	t       testing.TB
	dir     string // for files of the rows
	name    string // of the node
	noUsers bool   // pods have no user namespaces

	stopKubelet, stopTunnel func() // for good. Idempotent
}

// nodeOptions are of a node of subpod with a kubelet.
type nodeOptions struct {
	name    string   // "" is the host's
	expose  []string // network.expose
	config  string   // more TOML
	flags   []string // of "subpod kubernetes config"
	noUsers bool     // pods with user namespaces do not run
	bare    bool     // without the images of a control plane
}

// newNode makes a node of subpod with a kubelet that waits for kubeadm. name is "" for the
// host's; expose is network.expose; flags are of "subpod kubernetes config".
func newNode(t *testing.T, name string, expose []string, flags ...string) *cluster {
	t.Helper()
	return makeNode(t, nodeOptions{name: name, expose: expose, flags: flags})
}

func makeNode(t *testing.T, o nodeOptions) *cluster {
	if *programs == "" {
		t.Skip("the parts of Kubernetes are built by make test-kubernetes")
	}
	config := node.Bridge
	if *host != 0 {
		config += "wait_for_pod_cidr = true\n"
	}
	for i, port := range o.expose {
		o.expose[i] = strconv.Quote(port)
	}
	n := node.Start(t, node.Options{
		Config: config + "expose = [" + strings.Join(o.expose, ", ") + "]\n" + o.config,
		Env:    []string{"PATH=" + *programs + ":" + os.Getenv("PATH") + ":/usr/sbin:/sbin"},
	})
	c := &cluster{Node: n, t: t, dir: filepath.Join(n.Dir, "rows"), name: o.name, noUsers: o.noUsers}
	must(t, os.MkdirAll(c.dir, 0o755))
	flags := []string{"kubernetes", "config", "--write", fmt.Sprintf("--user-namespaces=%v", !o.noUsers)}
	flags = append(flags, o.flags...)
	if o.name == "" {
		hostname, err := os.Hostname()
		must(t, err)
		c.name = strings.ToLower(hostname)
	} else {
		flags = append(flags, "--node-name", o.name)
	}
	if !o.bare {
		c.load(filepath.Join(filepath.Dir(*programs), "images"))
	}
	c.subpod(flags...)
	// The machine that runs tests may have little left of its disk.
	c.write(filepath.Join(n.DataDir, "kubernetes/subpod/patches/kubeletconfiguration1+merge.yaml"),
		"evictionHard: {nodefs.available: \"200Mi\", imagefs.available: \"200Mi\", nodefs.inodesFree: \"1%\", memory.available: \"50Mi\"}\n"+
			"imageGCHighThresholdPercent: 100\nimageGCLowThresholdPercent: 99\nfileCheckFrequency: 2s\nsyncFrequency: 10s\n")
	c.keepKubelet()
	return c
}

// startCluster makes a control plane of a node by kubeadm init. Arguments are newNode's.
func startCluster(t *testing.T, name string, expose []string, flags ...string) *cluster {
	t.Helper()
	return newNode(t, name, expose, flags...).start()
}

// start makes a control plane of the node.
func (c *cluster) start() *cluster {
	c.t.Helper()
	c.kubeadm("init", "--config=/etc/kubernetes/subpod/init.yaml")
	c.kubectl("taint", "nodes", "--all", "node-role.kubernetes.io/control-plane-")
	c.nodeReady(c.name)
	for _, program := range []string{"daemonset/kube-proxy", "deployment/coredns"} {
		c.within(readyTimeout, "the cluster's own pods are ready", func() error {
			_, err := c.try("-n", "kube-system", "rollout", "status", program, "--timeout=10s")
			return err
		})
	}
	c.within(readyTimeout, "the control plane's pods are ready", func() error {
		_, err := c.try("-n", "kube-system", "wait", "pod", "--all", "--for=condition=Ready", "--timeout=10s")
		return err
	})
	return c
}

func (c *cluster) nodeReady(name string) {
	c.t.Helper()
	c.within(readyTimeout, "the node is Ready", func() error {
		return c.is("True", "get", "node", name, "-o", `jsonpath={.status.conditions[?(@.type=="Ready")].status}`)
	})
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// load loads all archives of a directory.
func (c *cluster) load(dir string) {
	c.t.Helper()
	archives, err := filepath.Glob(filepath.Join(dir, "*.tar"))
	if err == nil && len(archives) == 0 {
		err = fmt.Errorf("no images in %s: make test-kubernetes makes them", dir)
	}
	must(c.t, err)
	for _, file := range archives {
		c.subpod("load", "-i", file)
	}
}

func (c *cluster) write(path, content string) {
	c.t.Helper()
	must(c.t, os.WriteFile(path, []byte(content), 0o644))
}

func (c *cluster) subpod(args ...string) string {
	c.t.Helper()
	out, err := c.Subpod(args...)
	if err != nil {
		c.t.Fatalf("subpod %s: %v", strings.Join(args, " "), err)
	}
	return strings.TrimSpace(out)
}

// keepKubelet does what the kubelet's unit does.
func (c *cluster) keepKubelet() {
	c.t.Helper()
	c.stopKubelet = c.keepRunning("kubelet", "kubernetes", "kubelet", fmt.Sprintf("--user-namespaces=%v", !c.noUsers))
}

// keepRunning starts a command of subpod again whenever it ends, until stop, which is
// idempotent.
func (c *cluster) keepRunning(name string, args ...string) (stop func()) {
	c.t.Helper()
	log, err := os.Create(filepath.Join(c.Dir, name+".log"))
	must(c.t, err)
	program := node.Path(c.t, node.Subpod)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for ctx.Err() == nil {
			cmd := c.Command(ctx, program, args...)
			cmd.Stdout, cmd.Stderr = log, log
			cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
			cmd.WaitDelay = 20 * time.Second
			_ = cmd.Run()
			select {
			case <-ctx.Done():
			case <-time.After(time.Second):
			}
		}
	}()
	stop = func() { cancel(); <-ended }
	c.t.Cleanup(func() {
		stop()
		if c.t.Failed() {
			c.t.Logf("the end of the log of %s:\n%s", name, tail(log.Name(), 60))
		}
		log.Close()
	})
	return stop
}

// tail returns the last lines of a file.
func tail(path string, lines int) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimSpace(string(data)), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

func (c *cluster) kubeadm(args ...string) {
	c.t.Helper()
	c.inLong(append([]string{"kubeadm"}, args...)...)
}

// upgrade runs the next version's kubeadm, and once more where that has given up on etcd. The
// kubelet asks the API server to delete the pod that mirrors a static pod before it starts the
// changed one: an etcd that ends before the answer leaves it waiting for a minute, which is
// what kubeadm has patience for. It may be called again (its documentation says so).
func (c *cluster) upgrade(args ...string) {
	c.t.Helper()
	argv := append([]string{"kubeadm-next", "upgrade"}, args...)
	out, err := c.tryLong(argv...)
	if err != nil && strings.Contains(out, "could not retrieve the list of etcd endpoints") {
		c.t.Logf("%v\n%s", err, out)
		c.nodeReady(c.name)
		out, err = c.tryLong(argv...)
	}
	if err != nil {
		c.t.Fatalf("%s: %v\n%s", strings.Join(argv, " "), err, out)
	}
}

// inLong runs a command in the node that takes its time.
func (c *cluster) inLong(argv ...string) {
	c.t.Helper()
	if out, err := c.tryLong(argv...); err != nil {
		c.t.Fatalf("%s: %v\n%s", strings.Join(argv, " "), err, out)
	}
}

func (c *cluster) tryLong(argv ...string) (output string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), initTimeout)
	defer cancel()
	out, err := c.command(ctx, argv...).CombinedOutput()
	return string(out), err
}

// in runs a command in the node, with standard input, and returns its standard output.
func (c *cluster) in(stdin string, argv ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), callTimeout)
	defer cancel()
	cmd := c.command(ctx, argv...)
	var stderr bytes.Buffer
	cmd.Stdin, cmd.Stderr = strings.NewReader(stdin), &stderr
	out, err := cmd.Output()
	if err != nil {
		err = fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, strings.TrimSpace(stderr.String()))
	}
	return strings.TrimSpace(string(out)), err
}

func (c *cluster) command(ctx context.Context, argv ...string) *exec.Cmd {
	return c.Command(ctx, node.Path(c.t, node.Subpod), append([]string{"nsenter", "--workdir", "/", "--"}, argv...)...)
}

func kubectlArgs(args ...string) []string {
	return append([]string{"kubectl", "--kubeconfig=/etc/kubernetes/admin.conf", "--request-timeout=30s"}, args...)
}

func (c *cluster) try(args ...string) (string, error) { return c.in("", kubectlArgs(args...)...) }

func (c *cluster) kubectl(args ...string) string {
	c.t.Helper()
	out, err := c.try(args...)
	must(c.t, err)
	return out
}

// apply creates what a manifest has.
func (c *cluster) apply(manifest string) {
	c.t.Helper()
	_, err := c.in(manifest, kubectlArgs("apply", "-f", "-")...)
	must(c.t, err)
}

// is returns an error unless kubectl prints want.
func (c *cluster) is(want string, args ...string) error {
	got, err := c.try(args...)
	if err == nil && got != want {
		err = fmt.Errorf("kubectl %s: %q, want %q", strings.Join(args, " "), got, want)
	}
	return err
}

// has returns an error unless kubectl prints something with want in it.
func (c *cluster) has(want string, args ...string) error {
	got, err := c.try(args...)
	if err == nil && !strings.Contains(got, want) {
		err = fmt.Errorf("kubectl %s: no %q in %q", strings.Join(args, " "), want, got)
	}
	return err
}

// within repeats a check until it succeeds.
func (c *cluster) within(limit time.Duration, what string, check func() error) {
	c.t.Helper()
	deadline := time.Now().Add(limit)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			pods, _ := c.try("get", "pods", "-A", "-o", "wide")
			events, _ := c.try("get", "events", "-A", "--field-selector=type=Warning")
			c.t.Fatalf("%s: not within %v: %v\n%s\n%s", what, limit, err, pods, events)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

// eventually is within the limit of a row.
func (c *cluster) eventually(check func() error) {
	c.t.Helper()
	c.within(rowTimeout, "the row", check)
}

// ready waits until pods are ready.
func (c *cluster) ready(pods ...string) {
	c.t.Helper()
	for _, p := range pods {
		c.eventually(func() error {
			return c.is("True", "get", "pod", p, "-o", `jsonpath={.status.conditions[?(@.type=="Ready")].status}`)
		})
	}
}

// exec runs a command in a pod.
func (c *cluster) exec(pod string, argv ...string) (string, error) {
	return c.try(append([]string{"exec", "-q", pod, "--"}, argv...)...)
}

// says returns an error unless a command in a pod prints want.
func (c *cluster) says(want, pod string, argv ...string) error {
	return c.is(want, append([]string{"exec", "-q", pod, "--"}, argv...)...)
}

// json decodes what kubectl prints.
func (c *cluster) json(into any, args ...string) {
	c.t.Helper()
	must(c.t, json.Unmarshal([]byte(c.kubectl(args...)), into))
}
