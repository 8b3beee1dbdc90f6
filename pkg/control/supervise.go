package control

import (
	"context"
	"time"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/api"
	"github.com/subpod/subpod/pkg/quantity"
	"github.com/subpod/subpod/pkg/supervise"
	"github.com/subpod/subpod/pkg/workload"
)

// supervision is the part of the service for pods that the server keeps running.
type supervision struct{ *Dependencies }

// Play makes a pod that the supervisor starts and keeps running.
func (s *supervision) Play(ctx context.Context, req *api.PlayRequest) (*api.PlayResponse, error) {
	pod := &runtimeapi.PodSandboxConfig{}
	if err := proto.Unmarshal(req.Pod, pod); err != nil {
		return nil, invalid("decode the configuration of a pod to play: %v", err)
	}
	if err := req.Workload.Check(); err != nil {
		return nil, invalid("a pod to play: %v", err)
	}
	s.Audit.Request(ctx, &runtimeapi.RunPodSandboxRequest{Config: pod})
	for _, c := range req.Workload.Containers {
		ctr := &runtimeapi.ContainerConfig{}
		if err := proto.Unmarshal(c.Config, ctr); err != nil || ctr.GetMetadata().GetName() != c.Name {
			return nil, invalid("decode the configuration of container %q: %v", c.Name, err)
		}
		s.Audit.Request(ctx, &runtimeapi.CreateContainerRequest{SandboxConfig: pod, Config: ctr})
	}
	id, _, err := s.Restarter.RunPod(ctx, pod, req.Handler, req.Workload, workload.Status{StartedAt: time.Now()}, nil)
	if err != nil {
		return nil, err
	}
	s.Supervisor.Kick(id)
	return &api.PlayResponse{PodID: id}, nil
}

// Follow sends what happens to a pod of Play.
func (s *supervision) Follow(ctx context.Context, req *api.FollowRequest, send func(*api.FollowEvent) error) error {
	return s.Supervisor.Follow(ctx, req.PodID, func(e supervise.Event) error {
		return send(&api.FollowEvent{Text: e.Text, Up: e.Up, Final: e.Final, Stopped: e.Stopped, Failed: e.Failed, Reason: e.Reason})
	})
}

// Start starts a pod or a container.
func (s *supervision) Start(ctx context.Context, req *api.StartRequest) (*api.Empty, error) {
	return &api.Empty{}, s.Supervisor.StartPod(ctx, req.PodID, req.ContainerID)
}

// Restart ends a pod or a container, then starts it.
func (s *supervision) Restart(ctx context.Context, req *api.StartRequest) (*api.Empty, error) {
	return &api.Empty{}, s.Supervisor.RestartPod(ctx, req.PodID, req.ContainerID, quantity.Seconds(req.Grace))
}

// PreStop runs the preStop hook of a container.
func (s *supervision) PreStop(ctx context.Context, req *api.PreStopRequest) (*api.Empty, error) {
	return &api.Empty{}, s.Supervisor.PreStop(ctx, req.ContainerID)
}

// Pause freezes a container, or lets it go on.
func (s *supervision) Pause(ctx context.Context, req *api.PauseRequest) (*api.Empty, error) {
	return &api.Empty{}, s.Restarter.Pause(ctx, req.ContainerID, !req.Resume)
}

// Rename gives a pod another name.
func (s *supervision) Rename(ctx context.Context, req *api.RenameRequest) (*api.Empty, error) {
	if req.Name == "" {
		return nil, invalid("the request has no name")
	}
	return &api.Empty{}, s.Restarter.Rename(ctx, req.PodID, req.Name)
}

// SetRestart changes the restart policy of a container.
func (s *supervision) SetRestart(ctx context.Context, req *api.SetRestartRequest) (*api.Empty, error) {
	policy, err := workload.ParsePolicy(req.Restart)
	if err != nil {
		return nil, invalid("restart policy: %v", err)
	}
	podID, err := s.Restarter.SetPolicy(ctx, req.ContainerID, policy)
	if err == nil {
		s.Supervisor.Kick(podID)
	}
	return &api.Empty{}, err
}

// runPod makes the container of a run, in a pod that is there or in a new one: where it is
// to be restarted, or is started later, in the care of the supervisor.
func (s *service) runPod(ctx context.Context, run *api.RunRequest, pod *runtimeapi.PodSandboxConfig, ctr *runtimeapi.ContainerConfig) (podID, id string, err error) {
	policy, err := workload.ParsePolicy(run.Restart)
	if err != nil {
		return "", "", invalid("restart policy: %v", err)
	}
	if run.PodID != "" {
		if policy.Name != workload.No || run.Create {
			return "", "", invalid("only a container with a pod of its own can be restarted, or be started later")
		}
		id, err = s.Containers.CreateContainer(ctx, run.PodID, ctr)
		return run.PodID, id, err
	}
	if policy.Name == workload.No && !run.Create {
		return s.Containers.RunPodWith(ctx, pod, run.Handler, ctr)
	}
	if policy.Name != workload.No && pod.GetAnnotations()[api.AnnotationWhenDone] == api.WhenDoneRemove {
		return "", "", invalid("a container that is removed once it has exited cannot be restarted")
	}
	name := ctr.GetMetadata().GetName()
	spec := &workload.Spec{Backoff: workload.RunBackoff, Containers: []workload.Container{{Name: name, Role: workload.Main, Restart: policy}}}
	st := workload.Status{StartedAt: time.Now(), Stopped: run.Create}
	if !run.Create {
		st = st.With(name, workload.Progress{Ran: true})
	}
	return s.Restarter.RunPod(ctx, pod, run.Handler, spec, st, ctr)
}
