package fields

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// plugin is an NRI plugin that writes down what it is told, and does what its functions say.
type plugin struct {
	mu     sync.Mutex
	events []string
	ready  chan struct{}
	conn   net.Conn

	run    func(*api.PodSandbox) error
	create func(context.Context, *api.Container) (*api.ContainerAdjustment, error)
	update func(*api.LinuxResources) *api.LinuxResources
}

func (p *plugin) note(event string, pod *api.PodSandbox, c *api.Container) {
	p.mu.Lock()
	defer p.mu.Unlock()
	name, _, _ := strings.Cut(pod.GetName(), "-")
	if c != nil {
		name += "/" + c.GetName()
	}
	p.events = append(p.events, event+" "+name)
}

// heard reports whether the plugin was told something.
func (p *plugin) heard(event string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Contains(p.events, event)
}

// told returns what the plugin was told, and forgets it.
func (p *plugin) told() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	defer func() { p.events = nil }()
	return strings.Join(p.events, ", ")
}

func (p *plugin) Synchronize(_ context.Context, pods []*api.PodSandbox, containers []*api.Container) ([]*api.ContainerUpdate, error) {
	for _, pod := range pods {
		p.note("knows", pod, nil)
	}
	for _, c := range containers {
		p.note("knows", nil, c)
	}
	close(p.ready)
	return nil, nil
}

func (p *plugin) RunPodSandbox(_ context.Context, pod *api.PodSandbox) error {
	p.note("run", pod, nil)
	if p.run != nil {
		return p.run(pod)
	}
	return nil
}

func (p *plugin) StopPodSandbox(_ context.Context, pod *api.PodSandbox) error {
	p.note("stop", pod, nil)
	return nil
}

func (p *plugin) RemovePodSandbox(_ context.Context, pod *api.PodSandbox) error {
	p.note("remove", pod, nil)
	return nil
}

func (p *plugin) CreateContainer(ctx context.Context, pod *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	p.note("create", pod, c)
	if p.create == nil {
		return nil, nil, nil
	}
	a, err := p.create(ctx, c)
	return a, nil, err
}

func (p *plugin) PostCreateContainer(_ context.Context, pod *api.PodSandbox, c *api.Container) error {
	p.note("created", pod, c)
	return nil
}

func (p *plugin) StartContainer(_ context.Context, pod *api.PodSandbox, c *api.Container) error {
	p.note("start", pod, c)
	return nil
}

func (p *plugin) PostStartContainer(_ context.Context, pod *api.PodSandbox, c *api.Container) error {
	p.note("started", pod, c)
	return nil
}

func (p *plugin) UpdateContainer(_ context.Context, pod *api.PodSandbox, c *api.Container, r *api.LinuxResources) ([]*api.ContainerUpdate, error) {
	p.note("update", pod, c)
	if p.update == nil {
		return nil, nil
	}
	u := &api.ContainerUpdate{Linux: &api.LinuxContainerUpdate{Resources: p.update(r)}}
	u.SetContainerId(c.Id)
	return []*api.ContainerUpdate{u}, nil
}

func (p *plugin) StopContainer(_ context.Context, pod *api.PodSandbox, c *api.Container) ([]*api.ContainerUpdate, error) {
	p.note("stop", pod, c)
	return nil, nil
}

func (p *plugin) RemoveContainer(_ context.Context, pod *api.PodSandbox, c *api.Container) error {
	p.note("remove", pod, c)
	return nil
}

// plugin registers a plugin until the test ends.
func (e env) plugin(index string, p *plugin) *plugin {
	e.Helper()
	p.ready = make(chan struct{})
	s, err := stub.New(p, stub.WithPluginName("test"), stub.WithPluginIdx(index), stub.WithSocketPath(filepath.Join(e.n.XDG, "subpod/nri/nri.sock")),
		stub.WithDialer(func(path string) (conn net.Conn, err error) {
			p.conn, err = (&net.Dialer{}).DialContext(e.Context(), "unix", path)
			return p.conn, err
		}))
	e.must(err)
	e.must(s.Start(e.Context()))
	e.Cleanup(s.Stop)
	select {
	case <-p.ready:
	case <-time.After(time.Minute):
		e.Fatal("the plugin was not registered")
	}
	// It is registered just after it was told what there is.
	eventually(e, "the plugin is asked", func() error {
		pod := e.pod("probe", nil)
		pod.remove()
		if told := p.told(); !strings.Contains(told, "run probe") {
			return errors.New(told)
		}
		return nil
	})
	return p
}

func TestNRI(t *testing.T) {
	startWith(t, nil, []string{"crun"}, func(e env) {
		e.run("events", env.nriEvents)
		e.run("adjustments", env.nriAdjustments)
		e.run("refusals", env.nriRefusals)
		e.run("plugins that hang", env.nriHanging)
		e.run("reload", env.nriReload)
	})
}

func (e env) nriEvents() {
	before := e.pod("before", nil)
	before.start("c", idle())
	p := e.plugin("10", &plugin{})
	pod := e.pod("pod", nil)
	c := pod.start("c", idle())
	p.update = func(*api.LinuxResources) *api.LinuxResources {
		return &api.LinuxResources{Cpu: &api.LinuxCPU{Shares: api.UInt64(uint64(77))}}
	}
	_, err := e.cri.UpdateContainerResources(e.Context(), &runtimeapi.UpdateContainerResourcesRequest{ContainerId: c.id, Linux: &runtimeapi.LinuxContainerResources{CpuShares: 55, CpuPeriod: 100000}})
	e.must(err)
	if r := c.status().Resources.Linux; r.CpuShares != 77 || r.CpuPeriod != 100000 {
		e.Errorf("limits as a plugin has changed them: %v", r)
	}
	c.stop(1)
	pod.start("short", sh("exit 3"))
	eventually(e, "the plugin is told of the exit", func() error {
		if !p.heard("stop pod/short") {
			return errors.New("it is not")
		}
		return nil
	})
	_, err = e.cri.RemoveContainer(e.Context(), &runtimeapi.RemoveContainerRequest{ContainerId: c.id})
	e.must(err)
	_, err = e.cri.StopPodSandbox(e.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: pod.id})
	e.must(err)
	_, err = e.cri.StopPodSandbox(e.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: pod.id})
	e.must(err)
	_, err = e.cri.RemovePodSandbox(e.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: pod.id})
	e.must(err)
	e.equal("events", p.told(), "run pod, create pod/c, created pod/c, start pod/c, started pod/c, update pod/c, stop pod/c, "+
		"create pod/short, created pod/short, start pod/short, started pod/short, stop pod/short, remove pod/c, stop pod, remove pod/short, remove pod")
	late := &plugin{}
	e.knows(late, "before", "c")
}

// knows registers a plugin that must learn of a running pod with a container.
func (e env) knows(p *plugin, pod, container string) {
	e.Helper()
	p.ready = make(chan struct{})
	s, err := stub.New(p, stub.WithPluginName("late"), stub.WithPluginIdx("90"), stub.WithSocketPath(filepath.Join(e.n.XDG, "subpod/nri/nri.sock")))
	e.must(err)
	e.must(s.Start(e.Context()))
	defer s.Stop()
	<-p.ready
	if told := p.told(); !strings.Contains(told, "knows "+pod) || !strings.Contains(told, "knows /"+container) {
		e.Errorf("a plugin that comes later learns %q", told)
	}
}

func (e env) nriAdjustments() {
	dir := filepath.Join(e.n.Dir, "logs")
	p := e.plugin("10", &plugin{})
	var seen *api.Container
	p.create = func(_ context.Context, c *api.Container) (*api.ContainerAdjustment, error) {
		seen = c
		a := &api.ContainerAdjustment{}
		a.AddEnv("ADDED", "by plugin")
		a.RemoveEnv("ASKED")
		a.AddMount(&api.Mount{Destination: "/adjusted", Source: dir, Type: "bind", Options: []string{"rbind", "ro"}})
		a.RemoveMount("/etc/hosts")
		a.AddMount(&api.Mount{Destination: "/memory", Type: "tmpfs", Options: []string{"size=1m"}})
		a.AddDevice(&api.LinuxDevice{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229})
		a.AddRlimit("RLIMIT_NOFILE", 123, 122)
		a.SetLinuxOomScoreAdj(ptr(777))
		a.SetLinuxCPUShares(99)
		a.AddAnnotation("example.com/plugin", "was here")
		return a, nil
	}
	pod := e.pod("pod", nil)
	c := pod.start("c", idle(), func(c *ctrConfig) {
		c.Envs = []*runtimeapi.KeyValue{{Key: "ASKED", Value: []byte("for")}}
		c.Labels = map[string]string{"l": "1"}
	})
	if seen.GetName() != "c" || seen.GetLabels()["l"] != "1" || !slices.Contains(seen.GetEnv(), "ASKED=for") || seen.GetId() != c.id ||
		len(seen.GetMounts()) == 0 || len(seen.GetLinux().GetNamespaces()) == 0 || seen.GetArgs()[0] != "sh" {
		e.Errorf("what the plugin saw of the container: %v", seen)
	}
	e.equal("environment", c.sh("echo $ADDED, $ASKED"), "by plugin,")
	e.contains("mounts", c.exec("grep", "-E", " /(adjusted|memory) ", "/proc/self/mountinfo"), " /adjusted ro", "tmpfs")
	e.equal("mounts on what the plugin has removed", c.sh("grep -c ' /etc/hosts ' /proc/self/mountinfo || true"), "0")
	e.equal("device", c.sh("stat -c %t:%T /dev/fuse"), "a:e5")
	e.equal("limit of open files", c.sh("ulimit -n; ulimit -Hn"), "122\n123")
	e.equal("OOM score", c.exec("cat", "/proc/1/oom_score_adj"), "777")
	if got := c.status().Resources.GetLinux().GetCpuShares(); got != 99 {
		e.Errorf("cpu_shares in the status: %d", got)
	}
}

func ptr(v int) *int { return &v }

func (e env) nriRefusals() {
	p := e.plugin("10", &plugin{})
	p.run = func(*api.PodSandbox) error { return errors.New("not this one") }
	_, err := e.tryPod("refused", nil)
	e.refused("a pod sandbox that a plugin does not want", err, codes.Unknown, "not this one")
	e.equal("events", p.told(), "run refused, stop refused, remove refused")
	p.run = nil
	pod := e.pod("pod", nil)
	_ = p.told()
	for what, a := range map[string]struct {
		adjust func(*api.ContainerAdjustment)
		word   string
	}{
		"a namespace": {func(a *api.ContainerAdjustment) { a.AddOrReplaceNamespace(&api.LinuxNamespace{Type: "network"}) }, "namespace"},
		"a cgroup":    {func(a *api.ContainerAdjustment) { a.SetLinuxCgroupsPath("/x") }, "cgroup"},
		"a sysctl":    {func(a *api.ContainerAdjustment) { a.SetLinuxSysctl("kernel.x", "1") }, "sysctl"},
		"another device": {func(a *api.ContainerAdjustment) {
			a.AddDevice(&api.LinuxDevice{Path: "/dev/null", Type: "c", Major: 9, Minor: 9})
		}, "/dev/null"},
		"a relative source": {func(a *api.ContainerAdjustment) { a.AddMount(&api.Mount{Destination: "/x", Source: "x", Type: "bind"}) }, "host path"},
		"a root mount": {func(a *api.ContainerAdjustment) {
			a.AddMount(&api.Mount{Destination: "/", Source: "/tmp", Type: "bind"})
		}, "root"},
		"a file system": {func(a *api.ContainerAdjustment) { a.AddMount(&api.Mount{Destination: "/x", Type: "sysfs"}) }, "sysfs"},
		"a high limit":  {func(a *api.ContainerAdjustment) { a.AddRlimit("RLIMIT_NOFILE", 1<<40, 1<<40) }, "hard limit"},
		"an order":      {func(a *api.ContainerAdjustment) { a.AddAnnotation("run.oci.handler", "x") }, "run.oci"},
		"a CDI device":  {func(a *api.ContainerAdjustment) { a.AddCDIDevice(&api.CDIDevice{Name: "no.such/device=x"}) }, "no.such"},
	} {
		p.create = func(context.Context, *api.Container) (*api.ContainerAdjustment, error) {
			out := &api.ContainerAdjustment{}
			a.adjust(out)
			return out, nil
		}
		_, err := pod.tryCreate("c", idle())
		if err == nil || !strings.Contains(err.Error(), a.word) {
			e.Errorf("%s: %v, want an error with %q", what, err, a.word)
		}
		e.equal(what+": events", p.told(), "create pod/c, stop pod/c, remove pod/c")
	}
	list, err := e.cri.ListContainers(e.Context(), &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{PodSandboxId: pod.id}})
	e.must(err)
	e.equal("containers after all that was refused", len(list.Containers), 0)
}

// nriHanging: a plugin that hangs or dies is disconnected, and the container is created all
// the same.
func (e env) nriHanging() {
	pod := e.pod("pod", nil)
	released := make(chan struct{})
	defer close(released)
	for what, fail := range map[string]func(*plugin){
		"hangs": func(*plugin) { <-released },
		"dies":  func(p *plugin) { p.conn.Close() },
	} {
		p := e.plugin("10", &plugin{})
		p.create = func(context.Context, *api.Container) (*api.ContainerAdjustment, error) {
			fail(p)
			return nil, nil
		}
		_ = p.told()
		c := pod.start(what, idle())
		e.equal(what+": events", p.told(), "create pod/"+what)
		c.stop(0)
		pod.create(what + "-again")
		e.equal(what+": events after it was disconnected", p.told(), "")
	}
}

// nriReload: the next server lets plugins connect again, and they learn what there is.
func (e env) nriReload() {
	e.plugin("10", &plugin{})
	e.pod("stays", nil).start("c", idle())
	_, err := e.n.Subpod("reload")
	e.must(err)
	e.knows(&plugin{}, "stays", "c")
}
