package control

import (
	"context"
	"syscall"

	"github.com/subpod/subpod/pkg/api"
)

// Wait returns once a container has exited.
func (s *service) Wait(ctx context.Context, req *api.WaitRequest) (*api.WaitResponse, error) {
	st, err := s.Containers.WaitContainer(ctx, req.ContainerID, req.Attempt)
	if err != nil {
		return nil, err
	}
	return &api.WaitResponse{ExitCode: st.ExitCode, Reason: st.Reason, Message: st.Message, FinishedAt: st.FinishedAt}, nil
}

// Signal sends a signal to a container's process.
func (s *service) Signal(ctx context.Context, req *api.SignalRequest) (*api.Empty, error) {
	if req.Kill {
		if err := s.Supervisor.Kill(ctx, req.ContainerID, syscall.Signal(req.Signal)); err != nil {
			return nil, err
		}
	}
	return &api.Empty{}, s.Sessions.Signal(ctx, req.ContainerID, syscall.Signal(req.Signal))
}

// Top lists a container's processes.
func (s *service) Top(_ context.Context, req *api.TopRequest) (*api.TopResponse, error) {
	list, err := s.Sessions.Processes(req.ContainerID)
	if err != nil {
		return nil, err
	}
	resp := &api.TopResponse{Processes: make([]api.Process, 0, len(list))}
	for _, p := range list {
		resp.Processes = append(resp.Processes, api.Process{
			PID: p.PID, NodePID: p.Node, PPID: p.PPID, UID: p.UID, State: p.State, CPU: p.CPU,
			RSS: p.RSS, Threads: p.Threads, Started: p.Started, Command: p.Command,
		})
	}
	return resp, nil
}
