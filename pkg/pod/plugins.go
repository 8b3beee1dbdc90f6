package pod

import (
	"context"
	"log/slog"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/state"
)

// Moment is a point in the life of a pod sandbox or container of which plugins are told.
type Moment int

// The moments, in the order in which they come. Plugins may refuse PodRun, PodUpdate and
// ContainerStart: the request then fails.
const (
	PodRun     Moment = iota // it is built, and not ready yet
	PodUpdate                // its limits are about to change
	PodUpdated               // they have changed
	PodStop                  // its containers have exited, the rest is still there
	PodRemove                // nothing of it is left

	ContainerCreated // by the OCI runtime; plugins have been asked about it before
	ContainerUndone  // its creation has failed after they were
	ContainerStart   // it is about to be started
	ContainerStarted
	ContainerUpdated // its limits have changed
	ContainerStop    // it has exited
	ContainerRemove  // nothing of it is left
)

// plugins are told what happens to pod sandboxes and containers: *nri.Plugins, noPlugins and
// the fake of the tests (plugins_test.go). Each call is bounded in time by itself. What creates a container
// asks them, too (container.Builder.Adjust).
type plugins interface {
	Pod(ctx context.Context, m Moment, p state.Pod) error
	Container(ctx context.Context, m Moment, p state.Pod, c state.Container) error
	// Limits returns the change of a container's limits, as plugins have changed it.
	Limits(ctx context.Context, p state.Pod, c state.Container, change *runtimeapi.LinuxContainerResources) (*runtimeapi.LinuxContainerResources, error)
}

// noPlugins is what there is without NRI.
type noPlugins struct{}

func (noPlugins) Pod(context.Context, Moment, state.Pod) error { return nil }

func (noPlugins) Container(context.Context, Moment, state.Pod, state.Container) error { return nil }

func (noPlugins) Limits(_ context.Context, _ state.Pod, _ state.Container, change *runtimeapi.LinuxContainerResources) (*runtimeapi.LinuxContainerResources, error) {
	return change, nil
}

// notices tells plugins what they cannot refuse. It is called where events are published,
// in their order.
type notices struct {
	plugins plugins
	state   records
	log     *slog.Logger
}

func (n notices) pod(ctx context.Context, m Moment, p state.Pod) {
	if err := n.plugins.Pod(context.WithoutCancel(ctx), m, p); err != nil {
		n.log.Warn("a plugin could not be told what happened to a pod sandbox", "pod", p.ID, "error", err)
	}
}

func (n notices) container(ctx context.Context, m Moment, c state.Container) {
	if err := n.ask(context.WithoutCancel(ctx), m, c); err != nil {
		n.log.Warn("a plugin could not be told what happened to a container", "container", c.ID, "error", err)
	}
}

// ask is container for what plugins may refuse.
func (n notices) ask(ctx context.Context, m Moment, c state.Container) error {
	p, err := n.state.Pod(c.PodID)
	if err != nil {
		return nil // it is gone: its containers are gone with it
	}
	return n.plugins.Container(ctx, m, p, c)
}
