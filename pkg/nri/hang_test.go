package nri

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/adaptation"
	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/pod"
	"github.com/subpod/subpod/pkg/state"
)

// deaf is a connection that nobody reads from once it is deaf, as that of a stopped process.
type deaf struct {
	net.Conn
	now, over <-chan struct{}
}

func (d deaf) Read(b []byte) (int, error) {
	select {
	case <-d.now:
		<-d.over
	default:
	}
	return d.Conn.Read(b)
}

func (d deaf) Close() error {
	<-d.over
	return d.Conn.Close()
}

// client is a plugin.
type client struct {
	mu        sync.Mutex
	seen      []string
	configure func()
	sync      func() []*api.ContainerUpdate
	run       func() error
}

func (c *client) note(what string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen = append(c.seen, what)
}

func (c *client) told() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return strings.Join(c.seen, ", ")
}

func (c *client) Configure(context.Context, string, string, string) (api.EventMask, error) {
	if c.configure != nil {
		c.configure()
	}
	return 0, nil
}

func (c *client) Synchronize(context.Context, []*api.PodSandbox, []*api.Container) ([]*api.ContainerUpdate, error) {
	c.note("sync")
	if c.sync != nil {
		return c.sync(), nil
	}
	return nil, nil
}

func (c *client) RunPodSandbox(context.Context, *api.PodSandbox) error {
	c.note("run")
	if c.run != nil {
		return c.run()
	}
	return nil
}

func (c *client) StopContainer(context.Context, *api.PodSandbox, *api.Container) ([]*api.ContainerUpdate, error) {
	c.note("stop container")
	return nil, nil
}

// connect connects a plugin until the test ends.
func connect(t *testing.T, n *Plugins, c *client, wrap func(net.Conn) net.Conn) {
	t.Helper()
	s, err := stub.New(c, stub.WithPluginName("test"), stub.WithPluginIdx("10"), stub.WithSocketPath(n.options.Socket),
		stub.WithDialer(func(path string) (net.Conn, error) {
			conn, err := (&net.Dialer{}).DialContext(t.Context(), "unix", path)
			if err != nil {
				return nil, err
			}
			return wrap(conn), nil
		}))
	if err != nil {
		t.Fatal(err)
	}
	started := make(chan error, 1)
	go func() { started <- s.Start(context.Background()) }()
	t.Cleanup(func() {
		<-started
		s.Stop()
	})
}

func asItIs(c net.Conn) net.Conn { return c }

// listening starts plugins whose records are list.
func listening(t *testing.T, list func() ([]state.Pod, []state.Container)) *Plugins {
	t.Helper()
	n := newPlugins(t)
	n.started.Store(false)
	n.options.List = list
	n.options.Spec = func(state.Container) *specs.Spec { return nil }
	if err := n.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Close)
	return n
}

func none() ([]state.Pod, []state.Container) { return nil, nil }

// aPod is a record of a pod sandbox; its message is as long as its annotation.
func aPod(annotation string) state.Pod {
	return state.Pod{ID: "p", Config: state.Msg(&runtimeapi.PodSandboxConfig{Annotations: map[string]string{"a": annotation}})}
}

// within fails the test where f does not return.
func within(t *testing.T, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Fatal(what + " waits for a plugin without an end")
	}
}

// registered waits until the plugin is.
func registered(t *testing.T, n *Plugins) {
	t.Helper()
	within(t, "registration", func() {
		for n.count.Load() == 0 {
			time.Sleep(time.Millisecond)
		}
	})
}

// longer than what a socket takes while its reader does not read
const long = 2 << 20

// TestDeafPlugin: nobody waits longer than said for a plugin that does not read what it is
// sent, when it registers and later.
func TestDeafPlugin(t *testing.T) {
	for _, when := range []string{"registering", "later"} {
		t.Run(when, func(t *testing.T) {
			now, over := make(chan struct{}), make(chan struct{})
			list, syncing := none, make(chan struct{})
			if when == "registering" {
				list = func() ([]state.Pod, []state.Container) {
					adaptation.SetPluginRequestTimeout(200 * time.Millisecond)
					close(syncing)
					return []state.Pod{aPod(strings.Repeat("x", long))}, nil
				}
			}
			n := listening(t, list)
			t.Cleanup(func() { adaptation.SetPluginRequestTimeout(requestTimeout) })
			c := &client{configure: func() {
				if when == "registering" {
					close(now)
				}
			}}
			connect(t, n, c, func(conn net.Conn) net.Conn { return deaf{conn, now, over} })
			t.Cleanup(func() { close(over) })
			if when == "later" {
				registered(t, n)
				adaptation.SetPluginRequestTimeout(200 * time.Millisecond)
				close(now)
			} else {
				<-syncing
			}
			within(t, "a request", func() {
				if err := n.Pod(t.Context(), pod.PodRun, aPod(strings.Repeat("x", long))); err != nil {
					t.Errorf("a request is not served without the plugin: %v", err)
				}
			})
			within(t, "the next request", func() {
				if err := n.Pod(t.Context(), pod.PodStop, aPod("")); err != nil {
					t.Error(err)
				}
			})
			within(t, "the end", n.Close)
		})
	}
}

// TestInterrupted: a request that is interrupted does not wait for a plugin, which stays.
func TestInterrupted(t *testing.T) {
	n := listening(t, none)
	asked, over := make(chan struct{}), make(chan struct{})
	c := &client{run: func() error {
		close(asked)
		<-over
		return nil
	}}
	connect(t, n, c, asItIs)
	t.Cleanup(func() { close(over) })
	registered(t, n)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-asked
		cancel()
	}()
	within(t, "a request", func() {
		if err := n.Pod(ctx, pod.PodRun, aPod("")); !errors.Is(err, context.Canceled) {
			t.Errorf("interrupted: %v", err)
		}
	})
	if err := n.Container(t.Context(), pod.ContainerStop, aPod(""), state.Container{ID: "c", Config: state.Msg(&runtimeapi.ContainerConfig{})}); err != nil {
		t.Error(err)
	}
	if told := c.told(); !strings.HasSuffix(told, "stop container") {
		t.Errorf("the plugin was told %q", told)
	}
}

// TestRegistering: what happens while the first plugin learns what there is reaches it
// afterwards, and the limits that it asks for then are set when nobody waits for it any more.
func TestRegistering(t *testing.T) {
	c := state.Container{ID: "c", Config: state.Msg(&runtimeapi.ContainerConfig{})}
	n := listening(t, none)
	stopped, limited := make(chan error, 1), make(chan error, 1)
	n.options.Limit = func(ctx context.Context, _ string, _ *runtimeapi.LinuxContainerResources) error {
		// Another request has the container's lock, and talks to plugins.
		err := n.Container(ctx, pod.ContainerUpdated, aPod(""), c)
		limited <- errors.Join(err, ctx.Err())
		return nil
	}
	p := &client{sync: func() []*api.ContainerUpdate {
		go func() { stopped <- n.Container(context.Background(), pod.ContainerStop, aPod(""), c) }()
		select {
		case err := <-stopped:
			stopped <- err
		case <-time.After(100 * time.Millisecond): // it waits, as it must; it is told in any case
		}
		u := &api.ContainerUpdate{Linux: &api.LinuxContainerUpdate{Resources: &api.LinuxResources{}}}
		u.SetContainerId("c")
		return []*api.ContainerUpdate{u}
	}}
	connect(t, n, p, asItIs)
	within(t, "the exit of a container", func() {
		if err := <-stopped; err != nil {
			t.Error(err)
		}
	})
	if told := p.told(); told != "sync, stop container" {
		t.Errorf("the plugin was told %q", told)
	}
	within(t, "a limit", func() {
		if err := <-limited; err != nil {
			t.Error(err)
		}
	})
}

// TestLearningWhatIsCreated: a container whose creation ends while a plugin learns what there
// is does not escape it.
func TestLearningWhatIsCreated(t *testing.T) {
	n := newPlugins(t)
	c := state.Container{ID: "c", Config: state.Msg(&runtimeapi.ContainerConfig{})}
	n.creating["c"] = creation{container: c}
	n.options.List = func() ([]state.Pod, []state.Container) {
		n.created("c") // just after the records were read
		return nil, nil
	}
	learnt := 0
	err := n.synchronize(t.Context(), func(_ context.Context, _ []*adaptation.PodSandbox, containers []*adaptation.Container) ([]*adaptation.ContainerUpdate, error) {
		learnt = len(containers)
		return nil, nil
	})
	if err != nil || learnt != 1 {
		t.Errorf("the plugin learns of %d containers, %v", learnt, err)
	}
}

// TestLongRefusal: of what a plugin says against a request as much is passed on as a person
// reads.
func TestLongRefusal(t *testing.T) {
	n := listening(t, none)
	connect(t, n, &client{run: func() error { return errors.New("no" + strings.Repeat("ä", 1<<20)) }}, asItIs)
	registered(t, n)
	err := n.Pod(t.Context(), pod.PodRun, aPod(""))
	if err == nil || len(err.Error()) > 2*maxText || !strings.HasPrefix(err.Error(), "NRI: ") || !strings.Contains(err.Error(), "noä") {
		t.Errorf("%.2100v", err)
	}
}
