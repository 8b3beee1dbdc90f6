package cri

import (
	"context"
	"math"
	"time"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// CreateContainer makes a container in a pod sandbox.
func (s *Service) CreateContainer(ctx context.Context, req *runtimeapi.CreateContainerRequest) (*runtimeapi.CreateContainerResponse, error) {
	id, err := s.Runtime.CreateContainer(ctx, req.PodSandboxId, req.Config)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.CreateContainerResponse{ContainerId: id}, nil
}

// StartContainer starts a created container.
func (s *Service) StartContainer(ctx context.Context, req *runtimeapi.StartContainerRequest) (*runtimeapi.StartContainerResponse, error) {
	if err := s.Runtime.StartContainer(ctx, req.ContainerId); err != nil {
		return nil, err
	}
	return &runtimeapi.StartContainerResponse{}, nil
}

// StopContainer stops a container; a timeout of 0 kills it at once.
func (s *Service) StopContainer(ctx context.Context, req *runtimeapi.StopContainerRequest) (*runtimeapi.StopContainerResponse, error) {
	if err := s.Runtime.StopContainer(ctx, req.ContainerId, seconds(req.Timeout)); err != nil {
		return nil, err
	}
	return &runtimeapi.StopContainerResponse{}, nil
}

// RemoveContainer removes a container, also a running one.
func (s *Service) RemoveContainer(ctx context.Context, req *runtimeapi.RemoveContainerRequest) (*runtimeapi.RemoveContainerResponse, error) {
	if err := s.Runtime.RemoveContainer(ctx, req.ContainerId); err != nil {
		return nil, err
	}
	return &runtimeapi.RemoveContainerResponse{}, nil
}

// ListContainers returns the containers that the filter lets through.
func (s *Service) ListContainers(_ context.Context, req *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	return &runtimeapi.ListContainersResponse{Containers: s.Runtime.ListContainers(req.Filter)}, nil
}

// StreamContainers is ListContainers in pieces (KEP-5825).
func (s *Service) StreamContainers(req *runtimeapi.StreamContainersRequest, out grpc.ServerStreamingServer[runtimeapi.StreamContainersResponse]) error {
	return sendChunks(s.Runtime.ListContainers(req.Filter), func(chunk []*runtimeapi.Container) error {
		return out.Send(&runtimeapi.StreamContainersResponse{Containers: chunk})
	})
}

// ContainerStatus returns the status of a container.
func (s *Service) ContainerStatus(_ context.Context, req *runtimeapi.ContainerStatusRequest) (*runtimeapi.ContainerStatusResponse, error) {
	st, err := s.Runtime.ContainerStatus(req.ContainerId)
	if err != nil {
		return nil, err
	}
	resp := &runtimeapi.ContainerStatusResponse{Status: st}
	if req.Verbose {
		if resp.Info, err = s.Runtime.ContainerInfo(st.Id); err != nil {
			return nil, err
		}
	}
	return resp, nil
}

// UpdateContainerResources changes the limits of a container.
func (s *Service) UpdateContainerResources(ctx context.Context, req *runtimeapi.UpdateContainerResourcesRequest) (*runtimeapi.UpdateContainerResourcesResponse, error) {
	if err := s.Runtime.UpdateContainer(ctx, req.ContainerId, req.Linux); err != nil {
		return nil, err
	}
	return &runtimeapi.UpdateContainerResourcesResponse{}, nil
}

// ReopenContainerLog makes a container write to a new log file.
func (s *Service) ReopenContainerLog(ctx context.Context, req *runtimeapi.ReopenContainerLogRequest) (*runtimeapi.ReopenContainerLogResponse, error) {
	if err := s.Runtime.ReopenLog(ctx, req.ContainerId); err != nil {
		return nil, err
	}
	return &runtimeapi.ReopenContainerLogResponse{}, nil
}

// ExecSync runs a command in a container and returns its output.
func (s *Service) ExecSync(ctx context.Context, req *runtimeapi.ExecSyncRequest) (*runtimeapi.ExecSyncResponse, error) {
	result, err := s.Runtime.ExecSync(ctx, req.ContainerId, req.Cmd, seconds(req.Timeout))
	if err != nil {
		return nil, err
	}
	stdout, stderr := fit(result.Stdout, result.Stderr)
	return &runtimeapi.ExecSyncResponse{Stdout: stdout, Stderr: stderr, ExitCode: result.ExitCode}, nil
}

// maxOutput is what is left for output in one message.
const maxOutput = maxMessage - 1<<10

// fit cuts the output of an ExecSync to what one message holds, and what is the
// larger of the two first: more than that the client could not receive at all.
func fit(stdout, stderr []byte) ([]byte, []byte) {
	if len(stdout)+len(stderr) <= maxOutput {
		return stdout, stderr
	}
	small := min(len(stdout), len(stderr), maxOutput/2)
	large := maxOutput - small
	return stdout[:min(len(stdout), large)], stderr[:min(len(stderr), large)]
}

// Exec returns the URL where a command in a container can be streamed.
func (s *Service) Exec(_ context.Context, req *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	if err := s.Runtime.CheckExec(req.ContainerId, req.Cmd); err != nil {
		return nil, err
	}
	url, err := s.Stream.Exec(req)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ExecResponse{Url: url}, nil
}

// Attach returns the URL where a container's own streams can be joined.
func (s *Service) Attach(_ context.Context, req *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error) {
	if err := s.Runtime.CheckAttach(req.ContainerId, req.Tty); err != nil {
		return nil, err
	}
	url, err := s.Stream.Attach(req)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.AttachResponse{Url: url}, nil
}

// seconds turns a timeout of a request into a duration; less than nothing is
// nothing, more than a duration holds is the longest one.
func seconds(n int64) time.Duration {
	switch {
	case n <= 0:
		return 0
	case n > int64(math.MaxInt64/time.Second):
		return math.MaxInt64
	}
	return time.Duration(n) * time.Second
}
