package supervise

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"
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
	return p.Workload == nil || p.Workload.Made()
}

func (s *Supervisor) startDirectly(ctx context.Context, p state.Pod, id string) error {
	still := func(state.Pod) bool { return true }
	undo := func() error { return nil }
	if p.Workload != nil {
		// Whoever stops it from here on is the last one.
		still = func(p state.Pod) bool { return p.Supervised() && !halts(p.Workload, p.Supervision) }
		ended := startingDirectly(s, p.ID)
		defer func() {
			ended()
			s.Kick(p.ID)
		}()
		before, err := s.resume(p.ID)
		if err != nil {
			return err
		}
		if !before.Supervised() { // its user knows: nothing tries again
			undo = func() error { return s.giveUp(before) }
		}
	}
	err := s.Pods.Rebuild(ctx, p.ID, still)
	if err == nil && p.Workload != nil {
		err = s.noteSandbox(p)
	}
	if err == nil {
		err = s.startContainers(ctx, p.ID, id, still)
	}
	if err != nil {
		return errors.Join(err, undo())
	}
	return nil
}

// resume records that a pod of one container runs that is started now, and returns what
// there was before.
func (s *Supervisor) resume(podID string) (before state.Pod, err error) {
	s.anew(podID)
	_, err = s.Pods.Supervise(podID, func(p state.Pod) (workload.Status, bool) {
		before = p
		next := p.Supervision.Resumed()
		next.StartedAt = s.now()
		return next.With(p.Workload.Containers[0].Name, workload.Progress{Ran: true, Generation: next.Generation}), true
	})
	return before, err
}

// noteSandbox records that the only container of a pod is started in the sandbox that is
// there now: its next exit is one of this sandbox, with the pause of one.
func (s *Supervisor) noteSandbox(p state.Pod) error {
	name := p.Workload.Containers[0].Name
	_, err := s.Pods.Supervise(p.ID, func(p state.Pod) (workload.Status, bool) {
		progress := p.Supervision.Containers[name]
		old := progress.Generation
		progress.Generation = p.Supervision.Generation
		return p.Supervision.With(name, progress), old != progress.Generation
	})
	return err
}

// giveUp records that a pod is stopped which could not be started, unless it has been.
func (s *Supervisor) giveUp(before state.Pod) error {
	for _, c := range s.Records.ContainersOf(before.ID) {
		if c.State() == runtimeapi.ContainerState_CONTAINER_RUNNING {
			return nil
		}
	}
	_, err := s.Pods.Supervise(before.ID, func(p state.Pod) (workload.Status, bool) {
		next := before.Supervision
		next.Stopped, next.StoppedIn, next.Generation = true, s.NodeID, p.Supervision.Generation
		return next, p.Supervised()
	})
	return err
}

func (s *Supervisor) startContainers(ctx context.Context, podID, id string, still func(state.Pod) bool) error {
	var errs []error
	found := false
	for _, c := range s.Records.ContainersOf(podID) {
		if c.Status.Created && (id == "" || c.ID == id) {
			found = true
			errs = append(errs, s.Pods.StartAgain(ctx, c.ID, nil, false, still))
		}
	}
	if !found {
		return fmt.Errorf("%w: pod sandbox %s has no container any more: remove it", errdefs.ErrFailedPrecondition, podID)
	}
	return errors.Join(errs...)
}

// startBySteps lets the pod's unit do it, and waits.
func (s *Supervisor) startBySteps(ctx context.Context, p state.Pod, id string) error {
	name := ""
	containers := s.Records.ContainersOf(p.ID)
	for _, c := range containers {
		if c.ID == id {
			name = c.Config.V.GetMetadata().GetName()
			if c.State() == runtimeapi.ContainerState_CONTAINER_RUNNING {
				return nil
			}
		}
	}
	s.anew(p.ID)
	_, err := s.Pods.Supervise(p.ID, func(p state.Pod) (workload.Status, bool) {
		if p.Supervised() && !p.Supervision.Restarting {
			return restartable(p, containers, name)
		}
		next := p.Supervision.Resumed()
		next.StartedAt = s.now()
		return next, true
	})
	if err != nil {
		return err
	}
	s.Kick(p.ID)
	return s.awaitStart(ctx, p.ID, name)
}

// restartable returns the status of a pod in which the container of that name, or without
// one all that do not run and have not ended well, are due. Inits are the supervisor's.
func restartable(p state.Pod, containers []state.Container, name string) (next workload.Status, changed bool) {
	next = p.Supervision
	for _, c := range p.Workload.Containers {
		progress := p.Supervision.Containers[c.Name]
		rec := recordOf(p, containers, c.Name)
		ended := rec != nil && !rec.Status.FinishedAt.IsZero()
		well := ended && rec.Status.ExitCode == 0 && (c.Restart.Name == workload.No || c.Restart.Name == workload.OnFailure)
		if c.Name == name || name == "" && c.Role != workload.Init && (progress.Stopped || ended && !well) {
			next, changed = next.With(c.Name, workload.Progress{}), true
		}
	}
	return next, changed
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
		rec := recordOf(p, containers, c.Name)
		if rec == nil || rec.Status.StartedAt.IsZero() {
			return false
		}
		if !rec.Status.FinishedAt.IsZero() && (!p.Supervision.Containers[c.Name].Ran || rec.Status.ExitCode != 0 || rec.Status.FinishedAt.Before(p.Supervision.StartedAt)) {
			return false
		}
	}
	return true
}

// RestartPod ends a pod, or where id is set this container of it, with a grace period, and
// starts it. Its sandbox, with address and ports, stays where it is ready.
func (s *Supervisor) RestartPod(ctx context.Context, podID, id string, grace time.Duration) error {
	return s.restart(ctx, podID, id, grace, func(state.Pod, string) bool { return true })
}

// RestartUnhealthy is RestartPod for a container that nobody has asked to restart: one that
// its user has stopped, and that ends just now, stays so.
func (s *Supervisor) RestartUnhealthy(ctx context.Context, podID, id string, grace time.Duration) error {
	return s.restart(ctx, podID, id, grace, func(p state.Pod, name string) bool {
		if p.Workload == nil {
			return p.Status.Phase == state.PodReady
		}
		return p.Supervised() && !p.Supervision.Containers[name].Stopped
	})
}

// restart is RestartPod as long as the container of that name is wanted.
func (s *Supervisor) restart(ctx context.Context, podID, id string, grace time.Duration, wanted func(p state.Pod, name string) bool) error {
	p, err := s.Records.Pod(podID)
	if err != nil {
		return err
	}
	if p.Config.V.GetLabels()[api.LabelMadeBy] == "" {
		return s.StartPod(ctx, podID, id) // says why not
	}
	release := s.Pods.Hold(podID)
	defer release()
	// A client that leaves has not asked for a stop.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace+2*startTimeout)
	defer cancel()
	defer context.AfterFunc(s.ctx, cancel)()
	name := s.nameOf(podID, id)
	if goesOn, err := s.dueAfterEnd(podID, name, wanted); err != nil || !goesOn {
		return err
	}
	var ends errgroup.Group
	for _, c := range s.Records.ContainersOf(podID) {
		if c.State() == runtimeapi.ContainerState_CONTAINER_RUNNING && (id == "" || c.ID == id) {
			ends.Go(func() error { return s.Pods.End(ctx, c.ID, grace) })
		}
	}
	if err := ends.Wait(); err != nil {
		return errors.Join(err, s.stopRestart(podID))
	}
	if p, err := s.Records.Pod(podID); err == nil && !wanted(p, inWorkload(p, name)) {
		return nil // it was stopped meanwhile
	}
	return s.StartPod(ctx, podID, id)
}

// restartOn goes on with the restart of a pod that the server before this one has begun.
func (s *Supervisor) restartOn(p state.Pod) {
	if err := s.RestartPod(s.ctx, p.ID, "", p.Workload.Grace); err != nil && s.ctx.Err() == nil {
		s.Log.Warn("a pod whose restart was interrupted could not be restarted", "pod", p.ID, "error", err)
	}
}

// stopRestart records that a pod is stopped which could not be ended as a whole: its user
// knows. At the server's end, which may be the reason, the next one goes on.
func (s *Supervisor) stopRestart(podID string) error {
	if s.ctx.Err() != nil {
		return nil
	}
	_, err := s.Pods.Supervise(podID, func(p state.Pod) (workload.Status, bool) {
		next := p.Supervision
		next.Restarting, next.Stopped, next.StoppedIn = false, true, s.NodeID
		return next, p.Supervised() && p.Supervision.Restarting
	})
	return err
}

// dueAfterEnd records, before a container is ended, that it is to be started then whatever
// its policy: also by another server. Without a name all of the pod end before any starts.
// It reports whether the pod is wanted.
func (s *Supervisor) dueAfterEnd(podID, name string, wanted func(p state.Pod, name string) bool) (goesOn bool, err error) {
	_, err = s.Pods.Supervise(podID, func(p state.Pod) (workload.Status, bool) {
		st := p.Supervision
		name := inWorkload(p, name)
		if goesOn = wanted(p, name); !goesOn || !p.Supervised() {
			return st, false
		}
		if name != "" {
			return st.With(name, workload.Progress{Generation: st.Containers[name].Generation}), true
		}
		st.Restarting = true
		return st, true
	})
	return goesOn, err
}

// nameOf returns the name of a container; "" for no container.
func (s *Supervisor) nameOf(podID, id string) string {
	for _, c := range s.Records.ContainersOf(podID) {
		if c.ID == id {
			return c.Config.V.GetMetadata().GetName()
		}
	}
	return ""
}

// inWorkload returns the name that the pod's workload has for the container of that name.
func inWorkload(p state.Pod, name string) string {
	if p.Workload.Made() {
		return p.Workload.Containers[0].Name
	}
	return name
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
