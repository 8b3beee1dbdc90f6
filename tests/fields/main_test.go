// Package fields asks the running daemon for every field and call of the CRI that
// critest leaves out, over gRPC, and looks at the effect from inside of the
// containers: /proc/1/status, mountinfo, the links of /proc/self/ns.
package fields

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/tests/node"
)

func TestMain(m *testing.M) { node.Main(m) }

const (
	busybox = node.Busybox
	// grouped has default-user, UID 1000, in group 50000 (/etc/group).
	grouped    = "gcr.io/k8s-staging-cri-tools/test-image-predefined-group:latest"
	nonewprivs = "registry.k8s.io/e2e-test-images/nonewprivs:1.3"
	byName     = "gcr.io/k8s-staging-cri-tools/test-image-user-username-group:latest"
)

// Aliases, since this package is about little else.
type (
	podConfig = runtimeapi.PodSandboxConfig
	ctrConfig = runtimeapi.ContainerConfig
	security  = runtimeapi.LinuxContainerSecurityContext
	nsOption  = runtimeapi.NamespaceOption
)

// bridge pins the built-in network.
const bridge = node.Bridge

// env is a node and one runtime handler of it.
type env struct {
	*testing.T
	n       *node.Node
	cri     node.Client
	handler string
}

// in is the same for a subtest.
func (e env) in(t *testing.T) env {
	e.T, e.n = t, e.n.For(t)
	return e
}

// run starts a subtest.
func (e env) run(name string, test func(env)) {
	e.Helper()
	e.Run(name, func(t *testing.T) { test(e.in(t)) })
}

// start runs a test on a node of its own with the given images, once for each
// runtime handler, and looks for leaks at the end.
func start(t *testing.T, images []string, test func(env)) {
	t.Helper()
	startWith(t, images, []string{"crun", "runc"}, test)
}

func startWith(t *testing.T, images, handlers []string, test func(env)) {
	t.Helper()
	n := node.Start(t, node.Options{Config: bridge})
	e := env{T: t, n: n, cri: n.CRI()}
	for _, image := range append([]string{busybox}, images...) {
		e.pull(image)
	}
	e.warmUp()
	before := n.Look()
	for _, handler := range handlers {
		t.Run(handler, func(t *testing.T) {
			e := e.in(t)
			e.handler = handler
			test(e)
		})
	}
	n.NothingLeft(before)
}

// warmUp lets a first pod come and go: the bridge and its rules then stay.
func (e env) warmUp() {
	p := e.pod("warm-up", nil)
	p.start("c", sh("true"))
	p.remove()
}

func (e env) pull(image string) {
	e.Helper()
	_, err := e.cri.PullImage(e.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: image}})
	e.must(err)
}

func (e env) must(err error) {
	e.Helper()
	if err != nil {
		e.Fatal(err)
	}
}

// refused checks code and words of an error.
func (e env) refused(what string, err error, code codes.Code, words ...string) {
	e.Helper()
	if got := status.Code(err); got != code {
		e.Errorf("%s: code %v, want %v: %v", what, got, code, err)
		return
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			e.Errorf("%s: no %q in: %v", what, word, err)
		}
	}
}

// pod is a sandbox.
type pod struct {
	env
	id     string
	config *podConfig
}

// unique counts names, so that no two pods of a node have the same.
var unique int

// podFor returns the configuration of a pod as the kubelet writes it: containers
// have PID namespaces of their own.
func (e env) podFor(name string, change func(*podConfig)) *podConfig {
	unique++
	name = fmt.Sprintf("%s-%d", name, unique)
	config := &podConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "fields", Uid: "uid-" + name},
		LogDirectory: filepath.Join(e.n.Dir, "logs", name),
		Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
			NamespaceOptions: &nsOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
		}},
	}
	if change != nil {
		change(config)
	}
	return config
}

func podNamespaces(c *podConfig) *nsOption { return c.Linux.SecurityContext.NamespaceOptions }

// tryPod runs a pod that may be refused.
func (e env) tryPod(name string, change func(*podConfig)) (*pod, error) {
	config := e.podFor(name, change)
	if config.LogDirectory != "" {
		if err := os.MkdirAll(config.LogDirectory, 0o700); err != nil {
			e.Fatal(err)
		}
	}
	resp, err := e.cri.RunPodSandbox(e.Context(), &runtimeapi.RunPodSandboxRequest{Config: config, RuntimeHandler: e.handler})
	if err != nil {
		return nil, err
	}
	p := &pod{env: e, id: resp.PodSandboxId, config: config}
	e.Cleanup(p.remove)
	return p, nil
}

// pod runs a pod that ends with the test.
func (e env) pod(name string, change func(*podConfig)) *pod {
	e.Helper()
	p, err := e.tryPod(name, change)
	e.must(err)
	return p
}

func (p *pod) remove() {
	if _, err := p.cri.RemovePodSandbox(context.Background(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.id}); err != nil {
		p.Errorf("remove pod %s: %v", p.config.Metadata.Name, err)
	}
}

// in is the same pod for a subtest.
func (p *pod) in(e env) *pod {
	sub := *p
	sub.env = e
	return &sub
}

// change edits a container's configuration.
type change = func(*ctrConfig)

func sh(script string) change {
	return func(c *ctrConfig) { c.Command = []string{"sh", "-c", script} }
}

// idle is a container that waits to be looked into.
func idle() change { return sh("trap 'exit 0' TERM; while :; do sleep 0.1; done") }

func image(ref string) change { return func(c *ctrConfig) { c.Image.Image = ref } }

// secure edits the security context.
func secure(edit func(*security)) change {
	return func(c *ctrConfig) { edit(c.Linux.SecurityContext) }
}

func mounts(list ...*runtimeapi.Mount) change {
	return func(c *ctrConfig) { c.Mounts = append(c.Mounts, list...) }
}

func value(n int64) *runtimeapi.Int64Value { return &runtimeapi.Int64Value{Value: n} }

// container is a container of a pod.
type container struct {
	*pod
	id     string
	config *ctrConfig
}

// ctrFor returns a container's configuration.
func ctrFor(name string, changes ...change) *ctrConfig {
	config := &ctrConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: name},
		Image:    &runtimeapi.ImageSpec{Image: busybox},
		LogPath:  name + ".log",
		Linux: &runtimeapi.LinuxContainerConfig{
			Resources:       &runtimeapi.LinuxContainerResources{},
			SecurityContext: &security{NamespaceOptions: &nsOption{Pid: runtimeapi.NamespaceMode_CONTAINER}},
		},
	}
	for _, c := range changes {
		c(config)
	}
	return config
}

// tryCreate makes a container that may be refused.
func (p *pod) tryCreate(name string, changes ...change) (*container, error) {
	config := ctrFor(name, changes...)
	resp, err := p.cri.CreateContainer(p.Context(), &runtimeapi.CreateContainerRequest{
		PodSandboxId: p.id, Config: config, SandboxConfig: p.config,
	})
	return &container{p, resp.GetContainerId(), config}, err
}

func (p *pod) create(name string, changes ...change) *container {
	p.Helper()
	c, err := p.tryCreate(name, changes...)
	p.must(err)
	return c
}

// start makes and starts a container.
func (p *pod) start(name string, changes ...change) *container {
	p.Helper()
	c := p.create(name, changes...)
	_, err := p.cri.StartContainer(p.Context(), &runtimeapi.StartContainerRequest{ContainerId: c.id})
	p.must(err)
	return c
}

func (c *container) stop(grace int64) {
	c.Helper()
	_, err := c.cri.StopContainer(c.Context(), &runtimeapi.StopContainerRequest{ContainerId: c.id, Timeout: grace})
	c.must(err)
}

func (c *container) status() *runtimeapi.ContainerStatus {
	c.Helper()
	resp, err := c.cri.ContainerStatus(c.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: c.id})
	c.must(err)
	return resp.Status
}

// exited waits for the container's end.
func (c *container) exited() *runtimeapi.ContainerStatus {
	c.Helper()
	var s *runtimeapi.ContainerStatus
	eventually(c, "the container ends", func() error {
		if s = c.status(); s.State != runtimeapi.ContainerState_CONTAINER_EXITED {
			return fmt.Errorf("it is %v", s.State)
		}
		return nil
	})
	return s
}

// log waits for the container's end and returns what it has written, without the
// marks of the log's format.
func (c *container) log() string {
	c.Helper()
	path := c.exited().LogPath
	data, err := os.ReadFile(path)
	c.must(err)
	return regexp.MustCompile(`(?m)^\S+ (stdout|stderr) [FP] `).ReplaceAllString(string(data), "")
}

// try runs a command in the container.
func (c *container) try(argv ...string) *runtimeapi.ExecSyncResponse {
	c.Helper()
	resp, err := c.cri.ExecSync(c.Context(), &runtimeapi.ExecSyncRequest{ContainerId: c.id, Cmd: argv, Timeout: 60})
	c.must(err)
	return resp
}

// exec runs a command that must succeed, and returns its output without the white
// space around it.
func (c *container) exec(argv ...string) string {
	c.Helper()
	resp := c.try(argv...)
	if resp.ExitCode != 0 {
		c.Errorf("%q: exit code %d: %s%s", argv, resp.ExitCode, resp.Stdout, resp.Stderr)
	}
	return strings.TrimSpace(string(resp.Stdout))
}

func (c *container) sh(script string) string {
	c.Helper()
	return c.exec("sh", "-c", script)
}

// fails runs a script that must fail with a word in its output.
func (c *container) fails(script, word string) {
	c.Helper()
	resp := c.try("sh", "-c", script)
	if out := string(resp.Stdout) + string(resp.Stderr); resp.ExitCode == 0 || !strings.Contains(out, word) {
		c.Errorf("%q: exit code %d, output %q; want a failure with %q", script, resp.ExitCode, out, word)
	}
}

// begun waits until the first process executes its command: when the start is answered it
// may be the OCI runtime's still.
func (c *container) begun() *container {
	c.Helper()
	eventually(c, "the command is executed", func() error {
		if name := c.exec("cat", "/proc/1/comm"); strings.HasPrefix(name, "crun") || strings.HasPrefix(name, "runc") {
			return fmt.Errorf("it is %s", name)
		}
		return nil
	})
	return c
}

// proc returns a field of the first process's /proc/PID/status.
func (c *container) proc(field string) string {
	c.Helper()
	return statusField(c.begun().exec("cat", "/proc/1/status"), field)
}

func statusField(text, name string) string {
	m := regexp.MustCompile(`(?m)^` + name + `:[ \t]*(.*?)[ \t]*$`).FindStringSubmatch(text)
	if m == nil {
		return ""
	}
	return strings.Join(strings.Fields(m[1]), " ")
}

// equal compares two values in their usual notation.
func (e env) equal(what string, got, want any) {
	e.Helper()
	if fmt.Sprint(got) != fmt.Sprint(want) {
		e.Errorf("%s: %v, want %v", what, got, want)
	}
}

// contains fails the test unless text has every one of the words.
func (e env) contains(what, text string, words ...string) {
	e.Helper()
	for _, word := range words {
		if !strings.Contains(text, word) {
			e.Errorf("%s: no %q in:\n%s", what, word, text)
		}
	}
}

// logged waits for words in the daemon's log: what could not be honoured is said
// there.
func (e env) logged(words ...string) {
	e.Helper()
	eventually(e, "the daemon's log has "+strings.Join(words, ", "), func() error {
		for _, word := range words {
			if !strings.Contains(e.n.Log(), word) {
				return fmt.Errorf("no %q", word)
			}
		}
		return nil
	})
}

// eventually repeats a check until it returns nil.
var eventually = node.Eventually
