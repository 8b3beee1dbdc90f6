package cri

import (
	"context"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/pod"
	"github.com/subpod/subpod/pkg/quantity"
	"github.com/subpod/subpod/pkg/rpc"
	"github.com/subpod/subpod/pkg/stream"
)

// streamService serves exec, attach and port-forward.
type streamService struct {
	sessions *pod.Sessions
	stream   *stream.Server
}

// ExecSync runs a command in a container and returns its output.
func (s *streamService) ExecSync(ctx context.Context, req *runtimeapi.ExecSyncRequest) (*runtimeapi.ExecSyncResponse, error) {
	result, err := s.sessions.ExecSync(ctx, req.ContainerId, req.Cmd, quantity.Seconds(req.Timeout))
	if err != nil {
		return nil, err
	}
	stdout, stderr := fit(result.Stdout, result.Stderr)
	return &runtimeapi.ExecSyncResponse{Stdout: stdout, Stderr: stderr, ExitCode: result.ExitCode}, nil
}

// maxOutput is what is left for output in one message.
const maxOutput = rpc.MaxMessage - 1<<10

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
func (s *streamService) Exec(_ context.Context, req *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	if err := s.sessions.CheckExec(req.ContainerId, req.Cmd); err != nil {
		return nil, err
	}
	url, err := s.stream.Exec(req)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ExecResponse{Url: url}, nil
}

// Attach returns the URL where a container's own streams can be joined.
func (s *streamService) Attach(_ context.Context, req *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error) {
	if err := s.sessions.CheckAttach(req.ContainerId, req.Tty); err != nil {
		return nil, err
	}
	url, err := s.stream.Attach(req)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.AttachResponse{Url: url}, nil
}

// PortForward returns the URL where ports of a pod sandbox can be reached.
func (s *streamService) PortForward(_ context.Context, req *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	if err := s.sessions.CheckPortForward(req.PodSandboxId); err != nil {
		return nil, err
	}
	url, err := s.stream.PortForward(req)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.PortForwardResponse{Url: url}, nil
}
