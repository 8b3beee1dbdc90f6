package pod

import (
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/state"
)

// The events of GetContainerEvents (KEP-3386, evented PLEG): each carries the
// pod's status and that of all its containers.

func (r *Runtime) emitPod(id string, t runtimeapi.ContainerEventType) {
	if p, err := r.State.Pod(id); err == nil {
		r.emit(p, p.ID, t)
	}
}

// emitPodDeleted tells of a pod sandbox that is no longer there.
func (r *Runtime) emitPodDeleted(p state.Pod) {
	r.Events.Publish(&runtimeapi.ContainerEventResponse{
		ContainerId:        p.ID,
		ContainerEventType: runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT,
		CreatedAt:          time.Now().UnixNano(),
		PodSandboxStatus:   podStatus(p),
	})
}

func (r *Runtime) emitContainer(id string, t runtimeapi.ContainerEventType) {
	if c, err := r.State.Container(id); err == nil {
		if p, err := r.State.Pod(c.PodID); err == nil {
			r.emit(p, c.ID, t)
		}
	}
}

func (r *Runtime) emitContainerDeleted(c state.Container) {
	if p, err := r.State.Pod(c.PodID); err == nil {
		r.emit(p, c.ID, runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT)
	}
}

func (r *Runtime) emit(p state.Pod, id string, t runtimeapi.ContainerEventType) {
	r.Events.Publish(&runtimeapi.ContainerEventResponse{
		ContainerId:        id,
		ContainerEventType: t,
		CreatedAt:          time.Now().UnixNano(),
		PodSandboxStatus:   podStatus(p),
		ContainersStatuses: r.containerStatuses(p.ID),
	})
}
