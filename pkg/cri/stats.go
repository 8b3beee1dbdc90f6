package cri

import (
	"context"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/cgroup"
	"github.com/subpod/subpod/pkg/state"
	"github.com/subpod/subpod/pkg/stats"
)

// statsService serves statistics and metrics.
type statsService struct {
	state      *state.Store
	collector  *stats.Collector
	delegation cgroup.Delegation
}

func (s *statsService) containers(ctx context.Context, f *runtimeapi.ContainerStatsFilter) []*runtimeapi.ContainerStats {
	return s.collector.Containers(ctx, measurableContainers(s.state.Containers(), f))
}

func (s *statsService) pods(ctx context.Context, f *runtimeapi.PodSandboxStatsFilter) []*runtimeapi.PodSandboxStats {
	return s.collector.Pods(ctx, measurablePods(s.state, s.delegation, func(p state.Pod) bool {
		return hasPrefix(p.ID, f.GetId()) && matches(p.Config.V.Labels, f.GetLabelSelector())
	}))
}

func (s *statsService) metrics(ctx context.Context) []*runtimeapi.PodSandboxMetrics {
	return s.collector.Metrics(ctx, measurablePods(s.state, s.delegation, func(state.Pod) bool { return true }))
}

// ContainerStats measures a container.
func (s *statsService) ContainerStats(ctx context.Context, req *runtimeapi.ContainerStatsRequest) (*runtimeapi.ContainerStatsResponse, error) {
	c, err := s.state.FindContainer(req.ContainerId)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ContainerStatsResponse{Stats: s.collector.Containers(ctx, []stats.Container{measurable(c)})[0]}, nil
}

// ListContainerStats measures the running containers that match the filter.
func (s *statsService) ListContainerStats(ctx context.Context, req *runtimeapi.ListContainerStatsRequest) (*runtimeapi.ListContainerStatsResponse, error) {
	return &runtimeapi.ListContainerStatsResponse{Stats: s.containers(ctx, req.Filter)}, nil
}

// StreamContainerStats is ListContainerStats in pieces (KEP-5825).
func (s *statsService) StreamContainerStats(req *runtimeapi.StreamContainerStatsRequest, out grpc.ServerStreamingServer[runtimeapi.StreamContainerStatsResponse]) error {
	return sendChunks(s.containers(out.Context(), req.Filter), func(chunk []*runtimeapi.ContainerStats) error {
		return out.Send(&runtimeapi.StreamContainerStatsResponse{ContainerStats: chunk})
	})
}

// PodSandboxStats measures a pod sandbox.
func (s *statsService) PodSandboxStats(ctx context.Context, req *runtimeapi.PodSandboxStatsRequest) (*runtimeapi.PodSandboxStatsResponse, error) {
	p, err := s.state.FindPod(req.PodSandboxId)
	if err != nil {
		return nil, err
	}
	measured := s.collector.Pods(ctx, []stats.Pod{measurablePod(p, s.state.ContainersOf(p.ID), s.delegation)})
	return &runtimeapi.PodSandboxStatsResponse{Stats: measured[0]}, nil
}

// ListPodSandboxStats measures the ready pod sandboxes that match the filter.
func (s *statsService) ListPodSandboxStats(ctx context.Context, req *runtimeapi.ListPodSandboxStatsRequest) (*runtimeapi.ListPodSandboxStatsResponse, error) {
	return &runtimeapi.ListPodSandboxStatsResponse{Stats: s.pods(ctx, req.Filter)}, nil
}

// StreamPodSandboxStats is ListPodSandboxStats in pieces (KEP-5825).
func (s *statsService) StreamPodSandboxStats(req *runtimeapi.StreamPodSandboxStatsRequest, out grpc.ServerStreamingServer[runtimeapi.StreamPodSandboxStatsResponse]) error {
	return sendChunks(s.pods(out.Context(), req.Filter), func(chunk []*runtimeapi.PodSandboxStats) error {
		return out.Send(&runtimeapi.StreamPodSandboxStatsResponse{PodSandboxStats: chunk})
	})
}

// ListMetricDescriptors lists the metrics that ListPodSandboxMetrics may return.
func (s *statsService) ListMetricDescriptors(context.Context, *runtimeapi.ListMetricDescriptorsRequest) (*runtimeapi.ListMetricDescriptorsResponse, error) {
	return &runtimeapi.ListMetricDescriptorsResponse{Descriptors: stats.Descriptors()}, nil
}

// ListPodSandboxMetrics measures all ready pod sandboxes under the names that cAdvisor uses.
func (s *statsService) ListPodSandboxMetrics(ctx context.Context, _ *runtimeapi.ListPodSandboxMetricsRequest) (*runtimeapi.ListPodSandboxMetricsResponse, error) {
	return &runtimeapi.ListPodSandboxMetricsResponse{PodMetrics: s.metrics(ctx)}, nil
}

// StreamPodSandboxMetrics is ListPodSandboxMetrics in pieces (KEP-5825).
func (s *statsService) StreamPodSandboxMetrics(_ *runtimeapi.StreamPodSandboxMetricsRequest, out grpc.ServerStreamingServer[runtimeapi.StreamPodSandboxMetricsResponse]) error {
	return sendChunks(s.metrics(out.Context()), func(chunk []*runtimeapi.PodSandboxMetrics) error {
		return out.Send(&runtimeapi.StreamPodSandboxMetricsResponse{PodSandboxMetrics: chunk})
	})
}
