package cri

import (
	"context"
	"time"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/events"
	"github.com/subpod/subpod/pkg/pod"
	"github.com/subpod/subpod/pkg/state"
)

// sandboxService serves the calls for pod sandboxes.
type sandboxService struct {
	manager *pod.Manager
	state   *state.Store
	events  *events.Bus
}

// RunPodSandbox makes a pod sandbox.
func (s *sandboxService) RunPodSandbox(ctx context.Context, req *runtimeapi.RunPodSandboxRequest) (*runtimeapi.RunPodSandboxResponse, error) {
	if err := checkReserved(ctx, req.GetConfig().GetLabels(), req.GetConfig().GetAnnotations()); err != nil {
		return nil, err
	}
	id, err := s.manager.RunPod(ctx, req.Config, req.RuntimeHandler)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.RunPodSandboxResponse{PodSandboxId: id}, nil
}

// StopPodSandbox kills the containers of a pod sandbox and frees what it holds.
func (s *sandboxService) StopPodSandbox(ctx context.Context, req *runtimeapi.StopPodSandboxRequest) (*runtimeapi.StopPodSandboxResponse, error) {
	return &runtimeapi.StopPodSandboxResponse{}, s.manager.StopPod(ctx, req.PodSandboxId)
}

// RemovePodSandbox removes a pod sandbox with its containers.
func (s *sandboxService) RemovePodSandbox(ctx context.Context, req *runtimeapi.RemovePodSandboxRequest) (*runtimeapi.RemovePodSandboxResponse, error) {
	if err := s.manager.RemovePod(ctx, req.PodSandboxId); err != nil {
		return nil, err
	}
	return &runtimeapi.RemovePodSandboxResponse{}, nil
}

// PodSandboxStatus returns the status of a pod sandbox and of its containers.
func (s *sandboxService) PodSandboxStatus(_ context.Context, req *runtimeapi.PodSandboxStatusRequest) (*runtimeapi.PodSandboxStatusResponse, error) {
	p, err := s.state.FindPod(req.PodSandboxId)
	if err != nil {
		return nil, err
	}
	containers := s.state.ContainersOf(p.ID)
	resp := &runtimeapi.PodSandboxStatusResponse{
		Timestamp: time.Now().UnixNano(), Status: podStatus(p), ContainersStatuses: containerStatuses(containers),
	}
	if req.Verbose {
		if resp.Info, err = podInfo(p, containers); err != nil {
			return nil, err
		}
	}
	return resp, nil
}

// ListPodSandbox returns the pod sandboxes that match the filter.
func (s *sandboxService) ListPodSandbox(_ context.Context, req *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	return &runtimeapi.ListPodSandboxResponse{Items: listPods(s.state.Pods(), req.Filter)}, nil
}

// StreamPodSandboxes is ListPodSandbox in pieces (KEP-5825).
func (s *sandboxService) StreamPodSandboxes(req *runtimeapi.StreamPodSandboxesRequest, out grpc.ServerStreamingServer[runtimeapi.StreamPodSandboxesResponse]) error {
	return sendChunks(listPods(s.state.Pods(), req.Filter), func(chunk []*runtimeapi.PodSandbox) error {
		return out.Send(&runtimeapi.StreamPodSandboxesResponse{PodSandboxes: chunk})
	})
}

// UpdatePodSandboxResources changes the limits of the pod as a whole.
func (s *sandboxService) UpdatePodSandboxResources(ctx context.Context, req *runtimeapi.UpdatePodSandboxResourcesRequest) (*runtimeapi.UpdatePodSandboxResourcesResponse, error) {
	if err := s.manager.UpdatePod(ctx, req.PodSandboxId, req.Overhead, req.Resources); err != nil {
		return nil, err
	}
	return &runtimeapi.UpdatePodSandboxResourcesResponse{}, nil
}

// GetContainerEvents sends the events from the response's header on (KEP-3386).
func (s *sandboxService) GetContainerEvents(_ *runtimeapi.GetEventsRequest, out grpc.ServerStreamingServer[runtimeapi.ContainerEventResponse]) error {
	sub := s.events.Subscribe()
	defer sub.Close()
	// From this header on the client misses no event.
	if err := out.SendHeader(nil); err != nil {
		return err
	}
	for {
		event, err := sub.Next(out.Context())
		if err != nil {
			return err
		}
		if err := out.Send(containerEvent(event)); err != nil {
			return err
		}
	}
}

// chunk is how many items go into one message of a stream: far below the size
// limit of a gRPC message.
const chunk = 100

func sendChunks[T any](items []T, send func([]T) error) error {
	for len(items) > 0 {
		n := min(chunk, len(items))
		if err := send(items[:n]); err != nil {
			return err
		}
		items = items[n:]
	}
	return nil
}
