package api

import "github.com/subpod/subpod/pkg/workload"

// PlayRequest is a pod with all that is to run in it.
type PlayRequest struct {
	Pod      []byte         `json:"pod"` // marshalled PodSandboxConfig
	Handler  string         `json:"handler,omitempty"`
	Workload *workload.Spec `json:"workload"`
}

// PlayResponse names the pod sandbox.
type PlayResponse struct {
	PodID string `json:"podId"`
}

// FollowRequest names a pod by its full ID.
type FollowRequest struct {
	PodID string `json:"podId"`
}

// FollowEvent is something that has happened to a pod.
type FollowEvent struct {
	Text string `json:"text,omitempty"` // one line
	// Up is that all containers have started and been ready once, or have ended well.
	Up bool `json:"up,omitempty"`
	// Final is the last one: the pod was Stopped or removed, has Failed, for Reason, or
	// has succeeded.
	Final   bool   `json:"final,omitempty"`
	Stopped bool   `json:"stopped,omitempty"`
	Failed  bool   `json:"failed,omitempty"`
	Reason  string `json:"reason,omitempty"`
}

// StartRequest names a pod by its full ID, and one of its containers unless all are meant.
type StartRequest struct {
	PodID       string `json:"podId"`
	ContainerID string `json:"containerId,omitempty"`
	// Grace is, of a restart, what containers get to end, in seconds.
	Grace int64 `json:"grace,omitempty"`
}

// PreStopRequest names a container by its full ID.
type PreStopRequest struct {
	ContainerID string `json:"containerId"`
}

// PauseRequest names a container by its full ID.
type PauseRequest struct {
	ContainerID string `json:"containerId"`
	Resume      bool   `json:"resume,omitempty"`
}

// SetRestartRequest names a container by its full ID. Restart is a restart policy, as of
// RunRequest.
type SetRestartRequest struct {
	ContainerID string `json:"containerId"`
	Restart     string `json:"restart"`
}

// RenameRequest names a pod by its full ID.
type RenameRequest struct {
	PodID string `json:"podId"`
	Name  string `json:"name"`
}
