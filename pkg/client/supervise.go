package client

import (
	"context"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/api"
	"github.com/subpod/subpod/pkg/workload"
)

// Play hands a pod to the server, which keeps it running, and returns the ID of its
// sandbox. The paths of the host that its containers name are granted.
func Play(ctx context.Context, c *Client, pod *runtimeapi.PodSandboxConfig, handler string, spec *workload.Spec, containers []*runtimeapi.ContainerConfig) (id string, err error) {
	for _, ctr := range containers {
		if err := c.GrantFor(ctr); err != nil {
			return "", err
		}
	}
	req := &api.PlayRequest{Handler: handler, Workload: spec}
	if req.Pod, err = proto.Marshal(pod); err != nil {
		return "", err
	}
	resp, err := api.Call[api.PlayResponse](ctx, c.conn, "Play", req)
	if err != nil {
		return "", err
	}
	return resp.PodID, nil
}

// Follow calls got with what happens to a pod of Play, until its last event.
func Follow(ctx context.Context, c *Client, podID string, got func(*api.FollowEvent) error) error {
	return api.Receive(ctx, c.conn, "Follow", &api.FollowRequest{PodID: podID}, got)
}

// Start starts a pod, or a container of it where containerID is set.
func Start(ctx context.Context, c *Client, podID, containerID string) error {
	_, err := api.Call[api.Empty](ctx, c.conn, "Start", &api.StartRequest{PodID: podID, ContainerID: containerID})
	return err
}

// Restart ends a pod, or a container of it where containerID is set, with a grace period
// in seconds, then starts it.
func Restart(ctx context.Context, c *Client, podID, containerID string, grace int64) error {
	_, err := api.Call[api.Empty](ctx, c.conn, "Restart", &api.StartRequest{PodID: podID, ContainerID: containerID, Grace: grace})
	return err
}

// Kill sends a signal by which the user means to end a container.
func Kill(ctx context.Context, c *Client, id string, signal int) error {
	_, err := api.Call[api.Empty](ctx, c.conn, "Signal", &api.SignalRequest{ContainerID: id, Signal: signal, Kill: true})
	return err
}

// PreStop runs the preStop hook of a container of Play.
func PreStop(ctx context.Context, c *Client, id string) error {
	_, err := api.Call[api.Empty](ctx, c.conn, "PreStop", &api.PreStopRequest{ContainerID: id})
	return err
}

// Pause freezes a container, or lets it go on.
func Pause(ctx context.Context, c *Client, id string, resume bool) error {
	_, err := api.Call[api.Empty](ctx, c.conn, "Pause", &api.PauseRequest{ContainerID: id, Resume: resume})
	return err
}

// SetRestart changes the restart policy of a container of "subpod run".
func SetRestart(ctx context.Context, c *Client, id, policy string) error {
	_, err := api.Call[api.Empty](ctx, c.conn, "SetRestart", &api.SetRestartRequest{ContainerID: id, Restart: policy})
	return err
}

// Rename gives a pod of "subpod run" another name.
func Rename(ctx context.Context, c *Client, podID, name string) error {
	_, err := api.Call[api.Empty](ctx, c.conn, "Rename", &api.RenameRequest{PodID: podID, Name: name})
	return err
}
