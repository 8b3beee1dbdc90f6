package pod

import (
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/events"
	"github.com/subpod/subpod/pkg/state"
)

// publisher publishes the events of GetContainerEvents (KEP-3386, evented PLEG).
// Each carries the pod sandbox's record and those of its containers. It is called
// under the lock of the object, after the change is recorded.
type publisher struct {
	bus   *events.Bus
	state records
}

// pod publishes an event of a pod sandbox, whose ID stands for the container's.
func (e publisher) pod(p state.Pod, t runtimeapi.ContainerEventType) {
	e.publish(p, p.ID, t, true)
}

// podDeleted publishes that a pod sandbox and its containers are gone.
func (e publisher) podDeleted(p state.Pod) {
	e.publish(p, p.ID, runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT, false)
}

func (e publisher) container(c state.Container, t runtimeapi.ContainerEventType) {
	if p, err := e.state.Pod(c.PodID); err == nil {
		e.publish(p, c.ID, t, true)
	}
}

func (e publisher) publish(p state.Pod, id string, t runtimeapi.ContainerEventType, containers bool) {
	if !e.bus.HasSubscribers() {
		return
	}
	event := &events.Event{Type: t, ID: id, At: time.Now(), Pod: p}
	if containers {
		event.Containers = e.state.ContainersOf(p.ID)
	}
	e.bus.Publish(event)
}
