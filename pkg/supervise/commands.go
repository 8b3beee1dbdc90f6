package supervise

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/api"
	"github.com/subpod/subpod/pkg/state"
	"github.com/subpod/subpod/pkg/workload"
)

// StartPod starts a pod that was created, was stopped or has ended, and returns once it
// is up; where id is set, this container of it. What runs is left alone.
// errdefs.ErrFailedPrecondition for a pod that no command of ours has made.
func (s *Supervisor) StartPod(ctx context.Context, podID, id string) error {
	p, err := s.Records.Pod(podID)
	if err != nil {
		return err
	}
	if p.Config.V.GetLabels()[api.LabelMadeBy] == "" {
		return fmt.Errorf("%w: pod sandbox %s was made by a client of the CRI, and only that starts it again: a container of the CRI never comes back from Exited", errdefs.ErrFailedPrecondition, podID)
	}
	release := s.Pods.Hold(podID)
	defer release()
	if isDirect(p) {
		return s.startDirectly(ctx, p, id)
	}
	return s.startBySteps(ctx, p, id)
}

// isDirect reports whether what is in the pod was made by requests and not by the
// supervisor from a specification: it is started as it is there.
func isDirect(p state.Pod) bool {
	return p.Workload == nil || len(p.Workload.Containers) == 1 && len(p.Workload.Containers[0].Config) == 0
}

func (s *Supervisor) startDirectly(ctx context.Context, p state.Pod, id string) error {
	any := func(state.Pod) bool { return true }
	if err := s.Pods.Rebuild(ctx, p.ID, any); err != nil {
		return err
	}
	if p.Workload != nil {
		_, err := s.Pods.Supervise(p.ID, func(p state.Pod) (workload.Status, bool) {
			next := p.Supervision.Resumed()
			next.StartedAt = s.now()
			return next.With(p.Workload.Containers[0].Name, workload.Progress{Ran: true, Generation: next.Generation}), true
		})
		if err != nil {
			return err
		}
		defer s.Kick(p.ID)
	}
	var errs []error
	for _, c := range s.Records.ContainersOf(p.ID) {
		if c.Status.Created && (id == "" || c.ID == id) {
			errs = append(errs, s.Pods.StartAgain(ctx, c.ID, nil, false, any))
		}
	}
	err := errors.Join(errs...)
	if err != nil && p.Workload != nil { // its user knows: nothing tries again
		_, undo := s.Pods.Supervise(p.ID, func(p state.Pod) (workload.Status, bool) {
			p.Supervision.Stopped, p.Supervision.StoppedIn = true, s.NodeID
			return p.Supervision, true
		})
		err = errors.Join(err, undo)
	}
	return err
}

// startBySteps lets the pod's unit do it, and waits.
func (s *Supervisor) startBySteps(ctx context.Context, p state.Pod, id string) error {
	name := ""
	for _, c := range s.Records.ContainersOf(p.ID) {
		if c.ID == id {
			name = c.Config.V.GetMetadata().GetName()
			if c.State() == runtimeapi.ContainerState_CONTAINER_RUNNING {
				return nil
			}
		}
	}
	_, err := s.Pods.Supervise(p.ID, func(p state.Pod) (workload.Status, bool) {
		switch {
		case !p.Supervised():
			next := p.Supervision.Resumed()
			next.StartedAt = s.now()
			return next, true
		case name != "":
			return p.Supervision.With(name, workload.Progress{}), true
		}
		return p.Supervision, false
	})
	if err != nil {
		return err
	}
	s.Kick(p.ID)
	return s.awaitStart(ctx, p.ID, name)
}

const (
	// startTimeout bounds how long a start waits for containers before it says that they
	// are not up yet.
	startTimeout = time.Minute
	startPoll    = 20 * time.Millisecond
)

// awaitStart waits until the mains of a pod, or the container of that name, run or have
// ended well.
func (s *Supervisor) awaitStart(ctx context.Context, podID, name string) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		p, err := s.Records.Pod(podID)
		if err != nil {
			return err
		}
		if st := p.Supervision; st.Failed {
			return fmt.Errorf("pod sandbox %s has failed: %s", podID, st.Reason)
		} else if !st.Active() || s.started(p, name) {
			return nil
		}
		select {
		case <-time.After(startPoll):
		case <-ctx.Done():
			return fmt.Errorf("pod sandbox %s is not up yet, which is still being tried: %w", podID, ctx.Err())
		}
	}
}

func (s *Supervisor) started(p state.Pod, name string) bool {
	containers := s.Records.ContainersOf(p.ID)
	for _, c := range p.Workload.Containers {
		if name == "" && c.Role != workload.Main || name != "" && c.Name != name {
			continue
		}
		rec := recordOf(containers, c.Name)
		if rec == nil || !p.Supervision.Containers[c.Name].Ran || rec.Status.StartedAt.IsZero() {
			return false
		}
		if !rec.Status.FinishedAt.IsZero() && (rec.Status.ExitCode != 0 || rec.Status.FinishedAt.Before(p.Supervision.StartedAt)) {
			return false
		}
	}
	return true
}

// RestartPod ends a pod, or where id is set this container of it, with a grace period, and
// starts it. Its sandbox, with address and ports, stays where it is ready.
func (s *Supervisor) RestartPod(ctx context.Context, podID, id string, grace time.Duration) error {
	p, err := s.Records.Pod(podID)
	if err != nil {
		return err
	}
	if p.Config.V.GetLabels()[api.LabelMadeBy] == "" {
		return s.StartPod(ctx, podID, id) // says why not
	}
	release := s.Pods.Hold(podID)
	defer release()
	// Meanwhile nothing else restarts it. When this server dies here it stays stopped.
	_, err = s.Pods.Supervise(podID, func(p state.Pod) (workload.Status, bool) {
		st := p.Supervision
		if p.Workload == nil || !st.Active() {
			return st, false
		}
		if id == "" || isDirect(p) {
			st.Stopped, st.StoppedIn = true, s.NodeID
			return st, true
		}
		return st, false
	})
	if err != nil {
		return err
	}
	for _, c := range s.Records.ContainersOf(podID) {
		if c.State() != runtimeapi.ContainerState_CONTAINER_RUNNING || id != "" && c.ID != id {
			continue
		}
		if id != "" && !isDirect(p) { // the others go on
			if err := s.Pods.MarkStopped(ctx, c.ID); err != nil {
				return err
			}
		}
		if err := s.Pods.End(ctx, c.ID, grace); err != nil {
			return err
		}
	}
	return s.StartPod(ctx, podID, id)
}

// Kill notes that the user ends a container by a signal, before it is sent: it is not
// restarted then.
func (s *Supervisor) Kill(ctx context.Context, id string, sig syscall.Signal) error {
	c, err := s.Records.FindContainer(id)
	if err != nil || sig != syscall.SIGKILL && sig != c.StopSignal() {
		return err
	}
	return s.Pods.MarkStopped(ctx, c.ID)
}
