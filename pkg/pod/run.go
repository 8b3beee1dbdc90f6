package pod

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/api"
	"github.com/subpod/subpod/pkg/pod/sandbox"
	"github.com/subpod/subpod/pkg/state"
	"github.com/subpod/subpod/pkg/trace"
)

// newPod is a pod sandbox whose name is claimed and that is not built yet.
type newPod struct {
	state.Pod
	plan sandbox.Plan
	name string
	told bool // plugins know it

	recorded func() // called once the record is there, or never will be
}

// RunPod makes a pod sandbox and returns its ID. A retry with the same metadata and
// configuration returns the pod sandbox that the first request made.
// errdefs.ErrInvalidArgument, ErrNameTaken, errdefs.ErrAborted when
// another request stops it meanwhile.
func (m *Manager) RunPod(ctx context.Context, cfg *runtimeapi.PodSandboxConfig, handler string) (string, error) {
	n, existing, err := m.claimPod(ctx, cfg, handler)
	if err != nil || existing != "" {
		return existing, err
	}
	if _, err := m.build(ctx, n, nil); err != nil {
		return "", err
	}
	return n.ID, nil
}

// claimPod plans a pod sandbox and claims its name; for a retry it returns the ID of
// the one that is there.
func (b *base) claimPod(ctx context.Context, cfg *runtimeapi.PodSandboxConfig, handler string) (*newPod, string, error) {
	// subpod's own commands show what they use.
	unnamed := handler == "" && cfg.GetLabels()[api.LabelMadeBy] == ""
	handler, err := b.Handlers.Resolve(handler)
	if err != nil {
		return nil, "", err
	}
	id := newID()
	cfg, recorded, err := b.ownIDs.assign(id, cfg, b.Host.UIDs, b.Host.GIDs)
	if err != nil {
		return nil, "", err
	}
	claimed := false
	defer func() {
		if !claimed {
			recorded()
		}
	}()
	plan, err := sandbox.NewPlan(id, cfg, b.Host)
	if err != nil {
		return nil, "", err
	}
	n := &newPod{recorded: recorded, plan: plan, name: podName(cfg.Metadata), Pod: state.Pod{
		ID:             id,
		Config:         state.Msg(plan.Config),
		Handler:        handler,
		HandlerUnnamed: unnamed,
		CreatedAt:      time.Now(),
		Allocated:      plan.Resources(b.NodeID),
		Status:         state.PodStatus{Phase: state.PodCreating},
	}}
	_, step := trace.Start(ctx, "claim the name")
	existing, err := b.podNames.claim(ctx, n.name, id)
	step.End(err)
	if err != nil {
		return nil, "", err
	}
	if existing != nil {
		id, err := samePod(*existing, n)
		return nil, id, err
	}
	claimed = true
	return n, "", nil
}

// build builds the pod sandbox, with a container in it where ctr is set. On an error
// nothing is left, or what is left is in its record and is removed later. The claim of
// the name has ended when it returns.
func (m *Manager) build(ctx context.Context, n *newPod, ctr *runtimeapi.ContainerConfig) (_ *newContainer, err error) {
	defer n.recorded()
	trace.Set(ctx, "pod", n.ID)
	trace.Set(ctx, "name", n.plan.Config.GetMetadata().GetNamespace()+"/"+n.plan.Config.GetMetadata().GetName())
	held, unlock, err := m.podLocks.acquire(ctx, n.ID, exclusive)
	if err != nil {
		m.podNames.abort(n.name, n.ID)
		return nil, err
	}
	defer unlock()
	var c *newContainer
	if err = trace.Do(held, "record", func() error { return m.State.PutPod(n.Pod) }); err == nil {
		if ctr == nil {
			if err = m.Sandboxes.Build(held, n.plan, &n.Pod); err == nil {
				err = n.ask(held, m.Plugins)
			}
		} else {
			c, err = m.buildWith(held, n, ctr)
		}
	}
	if c != nil {
		defer c.unlock()
	}
	if err == nil {
		err = m.markReady(n)
	}
	if err == nil && c != nil {
		err = m.commitContainer(c)
	}
	if err != nil {
		if c != nil {
			err = errors.Join(err, m.undoContainer(ctx, c))
		}
		undoing, step := trace.Start(ctx, "undo")
		undoErr := m.undoPod(undoing, n)
		step.End(undoErr)
		if undoErr != nil {
			m.running.Go(func() { recovery{m}.again(m.ctx, n.ID) })
		}
		return nil, fmt.Errorf("run pod sandbox %s: %w", n.name, errors.Join(explain(held, err), undoErr))
	}
	m.podNames.commit(n.name, n.ID)
	// A pod sandbox is created and started at once. Subscribers get both, as for a container.
	m.events.pod(n.Pod, runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT)
	m.events.pod(n.Pod, runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT)
	if c != nil {
		m.announce(c)
	}
	return c, nil
}

// ask asks plugins about a pod sandbox that is built.
func (n *newPod) ask(ctx context.Context, p plugins) error {
	n.told = true
	return p.Pod(ctx, PodRun, n.Pod)
}

// markReady records that the pod sandbox is built.
func (b *base) markReady(n *newPod) error {
	ready := n.Pod
	ready.Status.Phase = state.PodReady
	if err := b.State.PutPod(ready); err != nil {
		return err
	}
	n.Pod = ready
	return nil
}

// samePod answers a retried RunPod.
func samePod(p state.Pod, n *newPod) (string, error) {
	if p.Handler != n.Handler || !proto.Equal(p.Config.V, n.plan.Config) {
		return "", fmt.Errorf("%w: pod sandbox %s is %s, made from another configuration; remove it, or raise the attempt", ErrNameTaken, n.name, p.ID)
	}
	if p.Status.Phase == state.PodCreating {
		return "", fmt.Errorf("%w: pod sandbox %s is %s, whose creation failed and is undone as soon as that is possible; remove it, or ask again", ErrNameTaken, n.name, p.ID)
	}
	if p.Status.Phase != state.PodReady {
		return "", fmt.Errorf("%w: pod sandbox %s is %s and %s; remove it, or raise the attempt", ErrNameTaken, n.name, p.ID, strings.ToLower(string(p.Status.Phase)))
	}
	return p.ID, nil
}

// undoPod removes what a failed build made, containers first, and ends the claim of the
// name. What cannot be undone keeps its record, in the phase Creating, and its name, so
// that a later call, StopPodSandbox or RemovePodSandbox tries again. A pod sandbox whose
// record says that it is ready, and cannot be changed, is left as it is.
func (b *base) undoPod(ctx context.Context, n *newPod) error {
	ctx, cancel := detached(ctx)
	defer cancel()
	failed := func(reason string) error {
		n.Status = state.PodStatus{Phase: state.PodCreating, Reason: reason}
		return b.State.PutPod(n.Pod)
	}
	if n.Status.Phase == state.PodReady {
		if err := failed("creation failed"); err != nil {
			b.podNames.commit(n.name, n.ID)
			return err
		}
	}
	var errs []error
	for _, c := range b.State.ContainersOf(n.ID) {
		errs = append(errs, b.deleteUncreated(ctx, c))
	}
	if n.told {
		b.notices.pod(ctx, PodStop, n.Pod)
		b.notices.pod(ctx, PodRemove, n.Pod)
	}
	err := errors.Join(errs...)
	if err == nil {
		err = b.Sandboxes.Teardown(ctx, n.Pod)
	}
	if err != nil {
		err = errors.Join(err, failed("creation failed and could not be undone: "+err.Error()))
		b.podNames.commit(n.name, n.ID)
		return err
	}
	return b.podNames.release(n.name, n.ID)
}
