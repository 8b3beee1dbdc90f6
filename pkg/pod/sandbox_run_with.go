package pod

import (
	"context"
	"errors"
	"fmt"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/state"
)

// RunPodWith is RunPod and CreateContainer at once: the container's root file
// system and monitor are made while the pod sandbox's namespaces and network are.
// When only the container could not be made its pod sandbox is removed again.
func (r *Runtime) RunPodWith(ctx context.Context, cfg *runtimeapi.PodSandboxConfig, handler string, ctr *runtimeapi.ContainerConfig) (podID, id string, err error) {
	if err := validateContainer(ctr); err != nil {
		return "", "", err
	}
	first := &firstContainer{cfg: ctr}
	if podID, err = r.runPod(ctx, cfg, handler, first); err != nil {
		return "", "", err
	}
	if first.done == nil { // a retry: the pod sandbox was there
		id, err = r.CreateContainer(ctx, podID, ctr)
		return podID, id, err
	}
	if first.err != nil {
		return "", "", errors.Join(first.err, r.discard(ctx, podID))
	}
	r.emitContainer(first.id, runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT)
	return podID, first.id, nil
}

// RemoveUnstarted removes the pod sandbox of a container unless that has ever been
// started.
func (r *Runtime) RemoveUnstarted(ctx context.Context, podID, id string) error {
	if c, err := r.State.Container(id); err == nil && !c.Status.StartedAt.IsZero() {
		return nil
	}
	return r.discard(ctx, podID)
}

// discard removes a pod sandbox that a command has made, with its logs.
func (r *Runtime) discard(ctx context.Context, podID string) error {
	p, err := r.State.Pod(podID)
	if err != nil {
		return nil // it is gone
	}
	ctx, cancel := r.detached(ctx)
	defer cancel()
	defer r.removeLogs(p)
	return r.RemovePod(ctx, podID)
}

// firstContainer is a container that is made together with its pod sandbox.
type firstContainer struct {
	cfg   *runtimeapi.ContainerConfig
	whole chan state.Pod // the pod sandbox; closed without it when that failed
	done  chan struct{}  // nil until begin
	id    string
	err   error
}

// begin starts to make the container in a pod sandbox whose record is written.
func (f *firstContainer) begin(ctx context.Context, r *Runtime, p state.Pod) {
	f.whole, f.done = make(chan state.Pod, 1), make(chan struct{})
	go func() {
		defer close(f.done)
		f.id, f.err = r.createContainer(ctx, p, f.cfg, func() (state.Pod, error) {
			p, ok := <-f.whole
			if !ok {
				return p, fmt.Errorf("%w: its pod sandbox could not be made", ErrWrongState)
			}
			return p, nil
		})
	}()
}

// end hands over the pod sandbox, or that it could not be made, and waits until
// the container is made or undone.
func (f *firstContainer) end(p state.Pod, err error) {
	if err == nil {
		f.whole <- p
	}
	close(f.whole)
	<-f.done
}
