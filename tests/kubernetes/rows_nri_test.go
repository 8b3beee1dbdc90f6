package kubernetes

import (
	"context"
	"errors"
	"path/filepath"
	"sync"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"
)

// nriPlugin adds a variable to the containers of one pod, and knows which of its events it
// was told.
type nriPlugin struct {
	pod string

	mu     sync.Mutex
	events []string
}

func (p *nriPlugin) note(event string, pod *api.PodSandbox) bool {
	if pod.GetName() != p.pod || pod.GetNamespace() != "default" {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.events = append(p.events, event)
	return true
}

// RunPodSandbox implements stub.RunPodInterface.
func (p *nriPlugin) RunPodSandbox(_ context.Context, pod *api.PodSandbox) error {
	p.note("run", pod)
	return nil
}

// CreateContainer implements stub.CreateContainerInterface.
func (p *nriPlugin) CreateContainer(_ context.Context, pod *api.PodSandbox, _ *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	if !p.note("create", pod) {
		return nil, nil, nil
	}
	a := &api.ContainerAdjustment{}
	a.AddEnv("BY_PLUGIN", "yes")
	return a, nil, nil
}

// RemovePodSandbox implements stub.RemovePodInterface.
func (p *nriPlugin) RemovePodSandbox(_ context.Context, pod *api.PodSandbox) error {
	p.note("remove", pod)
	return nil
}

// told returns an error unless the plugin was told of these events, in this order.
func (p *nriPlugin) told(want ...string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	next := 0
	for _, e := range p.events {
		if next < len(want) && e == want[next] {
			next++
		}
	}
	if next < len(want) {
		return errors.New("the plugin was not told " + want[next])
	}
	return nil
}

var _ = add(map[string]func(*cluster){
	"nri": func(c *cluster) {
		p := &nriPlugin{pod: "adjusted"}
		s, err := stub.New(p, stub.WithPluginName("row"), stub.WithPluginIdx("10"), stub.WithSocketPath(filepath.Join(c.XDG, "subpod/nri/nri.sock")))
		must(c.t, err)
		must(c.t, s.Start(c.t.Context()))
		defer s.Stop()
		c.apply(pod(p.pod, "echo $BY_PLUGIN; "+asleep, "", ""))
		c.ready(p.pod)
		c.eventually(func() error { return c.is("yes", "logs", p.pod) })
		c.kubectl("delete", "pod", p.pod)
		c.eventually(func() error { return p.told("run", "create", "remove") })
	},
})
