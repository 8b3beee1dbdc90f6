package cri

import (
	"context"
	"time"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// RunPodSandbox makes a pod sandbox.
func (s *Service) RunPodSandbox(ctx context.Context, req *runtimeapi.RunPodSandboxRequest) (*runtimeapi.RunPodSandboxResponse, error) {
	id, err := s.Runtime.RunPod(ctx, req.Config, req.RuntimeHandler)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.RunPodSandboxResponse{PodSandboxId: id}, nil
}

// StopPodSandbox kills the containers of a pod sandbox and frees what it holds.
func (s *Service) StopPodSandbox(ctx context.Context, req *runtimeapi.StopPodSandboxRequest) (*runtimeapi.StopPodSandboxResponse, error) {
	return &runtimeapi.StopPodSandboxResponse{}, s.Runtime.StopPod(ctx, req.PodSandboxId)
}

// RemovePodSandbox removes a pod sandbox with its containers.
func (s *Service) RemovePodSandbox(ctx context.Context, req *runtimeapi.RemovePodSandboxRequest) (*runtimeapi.RemovePodSandboxResponse, error) {
	if err := s.Runtime.RemovePod(ctx, req.PodSandboxId); err != nil {
		return nil, err
	}
	return &runtimeapi.RemovePodSandboxResponse{}, nil
}

// PodSandboxStatus returns the status of a pod sandbox and of its containers.
func (s *Service) PodSandboxStatus(_ context.Context, req *runtimeapi.PodSandboxStatusRequest) (*runtimeapi.PodSandboxStatusResponse, error) {
	resp := &runtimeapi.PodSandboxStatusResponse{Timestamp: time.Now().UnixNano()}
	var err error
	if resp.Status, resp.ContainersStatuses, err = s.Runtime.PodStatus(req.PodSandboxId); err != nil {
		return nil, err
	}
	if req.Verbose {
		if resp.Info, err = s.Runtime.PodInfo(resp.Status.Id); err != nil {
			return nil, err
		}
	}
	return resp, nil
}

// ListPodSandbox returns the pod sandboxes that the filter lets through.
func (s *Service) ListPodSandbox(_ context.Context, req *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	return &runtimeapi.ListPodSandboxResponse{Items: s.Runtime.ListPods(req.Filter)}, nil
}

// StreamPodSandboxes is ListPodSandbox in pieces (KEP-5825).
func (s *Service) StreamPodSandboxes(req *runtimeapi.StreamPodSandboxesRequest, out grpc.ServerStreamingServer[runtimeapi.StreamPodSandboxesResponse]) error {
	return sendChunks(s.Runtime.ListPods(req.Filter), func(chunk []*runtimeapi.PodSandbox) error {
		return out.Send(&runtimeapi.StreamPodSandboxesResponse{PodSandboxes: chunk})
	})
}

// UpdatePodSandboxResources changes the limits of the pod as a whole.
func (s *Service) UpdatePodSandboxResources(ctx context.Context, req *runtimeapi.UpdatePodSandboxResourcesRequest) (*runtimeapi.UpdatePodSandboxResourcesResponse, error) {
	if err := s.Runtime.UpdatePod(ctx, req.PodSandboxId, req.Overhead, req.Resources); err != nil {
		return nil, err
	}
	return &runtimeapi.UpdatePodSandboxResourcesResponse{}, nil
}

// PortForward returns the URL where ports of a pod sandbox can be reached.
func (s *Service) PortForward(_ context.Context, req *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	if err := s.Runtime.CheckPortForward(req.PodSandboxId); err != nil {
		return nil, err
	}
	url, err := s.Stream.PortForward(req)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.PortForwardResponse{Url: url}, nil
}

// GetContainerEvents sends the events from the response's header on (KEP-3386).
func (s *Service) GetContainerEvents(_ *runtimeapi.GetEventsRequest, out grpc.ServerStreamingServer[runtimeapi.ContainerEventResponse]) error {
	sub := s.Events.Subscribe()
	defer sub.Close()
	// The header tells the client that it misses nothing from here on.
	if err := out.SendHeader(nil); err != nil {
		return err
	}
	for {
		event, err := sub.Next(out.Context())
		if err != nil {
			return err
		}
		if err := out.Send(event); err != nil {
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
