package cri

import (
	"context"
	"syscall"

	"github.com/subpod/subpod/pkg/control"
)

// Wait returns once a container has exited.
func (s *controlService) Wait(ctx context.Context, req *control.WaitRequest) (*control.WaitResponse, error) {
	st, err := s.manager.WaitContainer(ctx, req.ContainerID)
	if err != nil {
		return nil, err
	}
	return &control.WaitResponse{ExitCode: st.ExitCode, Reason: st.Reason, Message: st.Message}, nil
}

// Signal sends a signal to a container's process.
func (s *controlService) Signal(ctx context.Context, req *control.SignalRequest) (*control.Empty, error) {
	return &control.Empty{}, s.sessions.Signal(ctx, req.ContainerID, syscall.Signal(req.Signal))
}

// Top lists a container's processes.
func (s *controlService) Top(_ context.Context, req *control.TopRequest) (*control.TopResponse, error) {
	list, err := s.sessions.Processes(req.ContainerID)
	if err != nil {
		return nil, err
	}
	resp := &control.TopResponse{Processes: make([]control.Process, 0, len(list))}
	for _, p := range list {
		resp.Processes = append(resp.Processes, control.Process{
			PID: p.PID, NodePID: p.Node, PPID: p.PPID, UID: p.UID, State: p.State, CPU: p.CPU,
			RSS: p.RSS, Threads: p.Threads, Started: p.Started, Command: p.Command,
		})
	}
	return resp, nil
}
