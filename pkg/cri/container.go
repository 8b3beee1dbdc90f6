package cri

import (
	"context"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/api"
	"github.com/subpod/subpod/pkg/cgroup"
	"github.com/subpod/subpod/pkg/health"
	"github.com/subpod/subpod/pkg/pod"
	"github.com/subpod/subpod/pkg/pod/container"
	"github.com/subpod/subpod/pkg/quantity"
	"github.com/subpod/subpod/pkg/state"
)

// containerService serves the calls for containers.
type containerService struct {
	manager  *pod.Manager
	sessions *pod.Sessions
	state    *state.Store
	health   *health.Monitor // nil: no checks
	cgroups  cgroup.Delegation
}

// CreateContainer creates a container in a pod sandbox.
func (s *containerService) CreateContainer(ctx context.Context, req *runtimeapi.CreateContainerRequest) (*runtimeapi.CreateContainerResponse, error) {
	if err := checkReserved(ctx, req.GetConfig().GetLabels(), req.GetConfig().GetAnnotations()); err != nil && !s.ofCommand(req.PodSandboxId) {
		return nil, err
	}
	id, err := s.manager.CreateContainer(ctx, req.PodSandboxId, req.Config)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.CreateContainerResponse{ContainerId: id}, nil
}

// ofCommand reports whether one of subpod's own commands has made a pod sandbox: one of an
// earlier version goes on to restart its containers, and sends no header.
func (s *containerService) ofCommand(podID string) bool {
	p, err := s.state.FindPod(podID)
	return err == nil && p.Config.V.GetLabels()[api.LabelMadeBy] != ""
}

// StartContainer starts a created container.
func (s *containerService) StartContainer(ctx context.Context, req *runtimeapi.StartContainerRequest) (*runtimeapi.StartContainerResponse, error) {
	if err := s.manager.StartContainer(ctx, req.ContainerId); err != nil {
		return nil, err
	}
	return &runtimeapi.StartContainerResponse{}, nil
}

// StopContainer stops a container; a timeout of 0 kills it at once.
func (s *containerService) StopContainer(ctx context.Context, req *runtimeapi.StopContainerRequest) (*runtimeapi.StopContainerResponse, error) {
	if err := s.manager.StopContainer(ctx, req.ContainerId, quantity.Seconds(req.Timeout)); err != nil {
		return nil, err
	}
	return &runtimeapi.StopContainerResponse{}, nil
}

// RemoveContainer removes a container, also a running one.
func (s *containerService) RemoveContainer(ctx context.Context, req *runtimeapi.RemoveContainerRequest) (*runtimeapi.RemoveContainerResponse, error) {
	if err := s.manager.RemoveContainer(ctx, req.ContainerId); err != nil {
		return nil, err
	}
	return &runtimeapi.RemoveContainerResponse{}, nil
}

// ListContainers returns the containers that match the filter.
func (s *containerService) ListContainers(_ context.Context, req *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	return &runtimeapi.ListContainersResponse{Containers: listContainers(s.state.Containers(), req.Filter)}, nil
}

// StreamContainers is ListContainers in pieces (KEP-5825).
func (s *containerService) StreamContainers(req *runtimeapi.StreamContainersRequest, out grpc.ServerStreamingServer[runtimeapi.StreamContainersResponse]) error {
	return sendChunks(listContainers(s.state.Containers(), req.Filter), func(chunk []*runtimeapi.Container) error {
		return out.Send(&runtimeapi.StreamContainersResponse{Containers: chunk})
	})
}

// ContainerStatus returns the status of a container.
func (s *containerService) ContainerStatus(_ context.Context, req *runtimeapi.ContainerStatusRequest) (*runtimeapi.ContainerStatusResponse, error) {
	c, err := s.state.FindContainer(req.ContainerId)
	if err != nil {
		return nil, err
	}
	resp := &runtimeapi.ContainerStatusResponse{Status: containerStatus(c)}
	if req.Verbose {
		spec, err := container.RuntimeSpec(c)
		if err != nil {
			return nil, err
		}
		paused := resp.Status.State == runtimeapi.ContainerState_CONTAINER_RUNNING && s.cgroups.Frozen(c.Allocated.Cgroup)
		if resp.Info, err = containerInfo(c, spec, s.health, paused); err != nil {
			return nil, err
		}
	}
	return resp, nil
}

// UpdateContainerResources changes the limits of a container.
func (s *containerService) UpdateContainerResources(ctx context.Context, req *runtimeapi.UpdateContainerResourcesRequest) (*runtimeapi.UpdateContainerResourcesResponse, error) {
	if err := s.manager.UpdateContainer(ctx, req.ContainerId, req.Linux); err != nil {
		return nil, err
	}
	return &runtimeapi.UpdateContainerResourcesResponse{}, nil
}

// ReopenContainerLog closes a container's log file and opens a new one at its path.
func (s *containerService) ReopenContainerLog(ctx context.Context, req *runtimeapi.ReopenContainerLogRequest) (*runtimeapi.ReopenContainerLogResponse, error) {
	if err := s.sessions.ReopenLog(ctx, req.ContainerId); err != nil {
		return nil, err
	}
	return &runtimeapi.ReopenContainerLogResponse{}, nil
}
