// Package state is the durable memory of the runtime: one record per pod
// sandbox and container, written before the side effect that it describes.
//
// A record keeps three things apart: the intent (the client's request,
// verbatim and immutable), the allocated resources (what was made for it: paths,
// addresses, processes) and the status (what became of it). Recovery decodes
// records; it reconstructs nothing.
package state

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"syscall"
	"time"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/netns"
	"github.com/subpod/subpod/pkg/oci"
	"github.com/subpod/subpod/pkg/workload"
)

// Pod is the record of one pod sandbox.
type Pod struct {
	ID      string                                `json:"id"`
	Config  Message[*runtimeapi.PodSandboxConfig] `json:"config"`
	Handler string                                `json:"handler"`
	// HandlerUnnamed is set where the request named no handler: Handler is then the
	// default one of that time.
	HandlerUnnamed bool         `json:"handlerUnnamed,omitempty"`
	CreatedAt      time.Time    `json:"createdAt"`
	Allocated      PodResources `json:"facts"`
	Status         PodStatus    `json:"status"`
	// Overhead and Resources are what UpdatePodSandboxResources last asked for.
	Overhead  Message[*runtimeapi.LinuxContainerResources] `json:"overhead,omitzero"`
	Resources Message[*runtimeapi.LinuxContainerResources] `json:"resources,omitzero"`
	// Workload is what the supervisor keeps running in the pod sandbox, Supervision how
	// far it is; nil for what others look after, as a kubelet does.
	Workload    *workload.Spec  `json:"workload,omitempty"`
	Supervision workload.Status `json:"supervision,omitzero"`
}

// RuntimeHandler returns the runtime handler as the request named it; "" for none.
func (p Pod) RuntimeHandler() string {
	if p.HandlerUnnamed {
		return ""
	}
	return p.Handler
}

// Supervised reports whether the supervisor restarts what ends in the pod.
func (p Pod) Supervised() bool { return p.Workload != nil && p.Supervision.Active() }

// PausePID returns the pause process as the node sees it, 0 where there is none any more.
func (p Pod) PausePID() int {
	if p.Status.Phase == PodNotReady {
		return 0
	}
	return p.Allocated.Pins.Pause.PID
}

// Resumable reports whether the supervisor may restart in this node what the user has last
// stopped in an earlier one.
func (p Pod) Resumable(nodeID string) bool {
	return p.Workload != nil && !p.Supervision.Done && p.Supervision.StoppedIn != "" && p.Supervision.StoppedIn != nodeID
}

// PodResources are what was allocated for a pod sandbox. Teardown removes whatever
// is listed here; a zero field was never allocated.
type PodResources struct {
	// Node is the identity of the node that the pod was made in (rootless.Node.Identity).
	Node    string        `json:"node"`
	Pins    netns.Pins    `json:"pins"`
	Network *netns.Result `json:"network,omitempty"`
	// NetworkAsked is set before the network is set up, so that a crash in the
	// middle still tears it down.
	NetworkAsked bool `json:"networkAsked,omitempty"`
	// Switched says that the pod's sockets are switched to the host's network.
	Switched bool `json:"switched,omitempty"`
	// Shm is the mounted /dev/shm of the pod.
	Shm    string `json:"shm,omitempty"`
	Cgroup string `json:"cgroup,omitempty"`
}

// PodPhase is where a pod sandbox stands.
//
//	Creating ──▶ Ready ──▶ Stopping ──▶ NotReady ──▶ (removed)
//	               │                       ▲
//	               └───────────────────────┘  the node was rebooted
//
// A pod sandbox whose creation failed, or whose server died in it, is removed: where that
// fails, it is still Creating, and the removal is tried again.
type PodPhase string

// The phases of a pod sandbox. Only Ready answers SANDBOX_READY.
const (
	PodCreating PodPhase = "Creating"
	PodReady    PodPhase = "Ready"
	PodStopping PodPhase = "Stopping"
	PodNotReady PodPhase = "NotReady"
)

// PodStatus is what became of a pod sandbox.
type PodStatus struct {
	Phase PodPhase `json:"phase"`
	// Reason says why the pod is not ready. With one, the pod sandbox may still hold
	// something: stopping it tries again.
	Reason string `json:"reason,omitempty"`
}

// NamespaceOptions returns the namespaces that the pod sandbox was requested with;
// nil when the request says nothing about them.
func (p Pod) NamespaceOptions() *runtimeapi.NamespaceOption { return NamespaceOptions(p.Config.V) }

// NamespaceOptions returns the namespaces that a request for a pod sandbox asks
// for; nil when it says nothing about them.
func NamespaceOptions(cfg *runtimeapi.PodSandboxConfig) *runtimeapi.NamespaceOption {
	return cfg.GetLinux().GetSecurityContext().GetNamespaceOptions()
}

// OnNode reports whether a namespace mode means the namespace of the node.
func OnNode(mode runtimeapi.NamespaceMode) bool { return mode == runtimeapi.NamespaceMode_NODE }

// IPs returns the addresses of the pod sandbox, the primary one first; none when
// it has no network of its own.
func (p Pod) IPs() []netip.Addr {
	if p.Allocated.Network == nil {
		return nil
	}
	ips := slices.Clone(p.Allocated.Network.IPs)
	for _, l := range p.Allocated.Network.Others {
		ips = append(ips, l.IPs...)
	}
	return ips
}

// Container is the record of one container.
type Container struct {
	ID        string                               `json:"id"`
	PodID     string                               `json:"podId"`
	Config    Message[*runtimeapi.ContainerConfig] `json:"config"`
	CreatedAt time.Time                            `json:"createdAt"`
	Allocated ContainerResources                   `json:"facts"`
	Status    ContainerStatus                      `json:"status"`
	// Resources are the limits in force, as last asked for.
	Resources Message[*runtimeapi.LinuxContainerResources] `json:"resources,omitzero"`
	// Restarts counts how often it was made again in its own place.
	Restarts uint32 `json:"restarts,omitempty"`
	// Ended are the ends of its last runs before this one, the oldest first.
	Ended []RunEnd `json:"ended,omitempty"`
}

// RunEnd is how a run of a container ended that was made again since.
type RunEnd struct {
	Attempt    uint32    `json:"attempt"`
	ExitCode   int32     `json:"exitCode"`
	Reason     string    `json:"reason,omitempty"`
	FinishedAt time.Time `json:"finishedAt,omitzero"`
}

// maxEnded bounds Ended: as many runs as may end before one who waits for the first of
// them asks how it ended.
const maxEnded = 4

// Attempt returns the number of the present run, as the CRI counts.
func (c Container) Attempt() uint32 { return c.Config.V.GetMetadata().GetAttempt() + c.Restarts }

// NextRun makes the record that of the run after the present one, which has ended.
func (c *Container) NextRun() {
	end := RunEnd{Attempt: c.Attempt(), ExitCode: c.Status.ExitCode, Reason: c.Status.Reason, FinishedAt: c.Status.FinishedAt}
	c.Ended = append(slices.Clone(c.Ended[max(0, len(c.Ended)+1-maxEnded):]), end)
	c.Status = ContainerStatus{}
	c.Restarts++
}

// ContainerResources are what was allocated for a container.
type ContainerResources struct {
	Node     string `json:"node"`
	ImageID  string `json:"imageId"`
	ImageRef string `json:"imageRef"`
	// ImageName is the image as people know it: what was asked for, or a tag where
	// that was an ID. Empty in records of older versions.
	ImageName string `json:"imageName,omitempty"`
	Rootfs    string `json:"rootfs,omitempty"`
	LogPath   string `json:"logPath,omitempty"`
	// Args are the program and its arguments, the image's among them.
	Args []string `json:"args,omitempty"`
	// ImageMounts are the keys of the image volumes mounted for the container.
	ImageMounts []string `json:"imageMounts,omitempty"`
	// MountSources has, by path in the container, what mounts show whose source in the
	// OCI specification is gone once the container is made.
	MountSources map[string]string `json:"mountSources,omitempty"`
	// MountImages are the IDs of the images that are mounted, by path in the container.
	// Older versions did not record them.
	MountImages map[string]string `json:"mountImages,omitempty"`
	// Runtime is nil until the OCI runtime has made the container.
	Runtime    *oci.Container `json:"runtime,omitempty"`
	StopSignal int            `json:"stopSignal,omitempty"`
	User       User           `json:"user"`
	Cgroup     string         `json:"cgroup,omitempty"`
	// Cleaned is set once nothing of the exited container but its log, its
	// root file system layer and this record is left.
	Cleaned bool `json:"cleaned,omitempty"`
	// Remaking is set while the exited container is made again in its own place: the
	// OCI runtime may have one that the record does not know yet.
	Remaking bool `json:"remaking,omitempty"`
}

// User is the identity of the container's first process.
type User struct {
	UID    uint32   `json:"uid"`
	GID    uint32   `json:"gid"`
	Groups []uint32 `json:"groups,omitempty"`
}

// ContainerStatus is what became of a container. The CRI state follows from
// it: see State.
type ContainerStatus struct {
	// Created is set when CreateContainer has succeeded; before it, the
	// container is shown to nobody.
	Created    bool      `json:"created"`
	StartedAt  time.Time `json:"startedAt,omitzero"`
	FinishedAt time.Time `json:"finishedAt,omitzero"`
	ExitCode   int32     `json:"exitCode"`
	Reason     string    `json:"reason,omitempty"`
	Message    string    `json:"message,omitempty"`
	// StartError is the runtime's message when the process cannot be started;
	// it is known at creation and returned by StartContainer.
	StartError string `json:"startError,omitempty"`
	// Removing is set once removal has begun.
	Removing bool `json:"removing,omitempty"`
}

// StopSignal returns the signal that asks the container to stop: SIGTERM unless the
// request or the image names another one.
func (c Container) StopSignal() syscall.Signal {
	if c.Allocated.StopSignal == 0 {
		return syscall.SIGTERM
	}
	return syscall.Signal(c.Allocated.StopSignal)
}

// StateWord returns the state of the container as messages to people name it.
func (c Container) StateWord() string {
	switch c.State() {
	case runtimeapi.ContainerState_CONTAINER_CREATED:
		return "created"
	case runtimeapi.ContainerState_CONTAINER_RUNNING:
		return "running"
	case runtimeapi.ContainerState_CONTAINER_EXITED:
		return "exited"
	}
	return "in an unknown state"
}

// State returns the CRI state of the container, which follows from its status.
func (c Container) State() runtimeapi.ContainerState {
	switch {
	case !c.Status.FinishedAt.IsZero():
		return runtimeapi.ContainerState_CONTAINER_EXITED
	case !c.Status.StartedAt.IsZero():
		return runtimeapi.ContainerState_CONTAINER_RUNNING
	case c.Status.Created:
		return runtimeapi.ContainerState_CONTAINER_CREATED
	}
	return runtimeapi.ContainerState_CONTAINER_UNKNOWN
}

// Message stores a protobuf message by its wire form: exactly what the client
// sent, unknown fields included. The message is shared by all copies of a
// record: read it, never change it.
type Message[M interface {
	proto.Message
	comparable
}] struct{ V M }

// Msg wraps m.
func Msg[M interface {
	proto.Message
	comparable
}](m M) Message[M] {
	return Message[M]{V: m}
}

// IsZero reports whether there is no message.
func (m Message[M]) IsZero() bool { var zero M; return m.V == zero }

// MarshalJSON writes the wire form as base64; null when there is no message.
func (m Message[M]) MarshalJSON() ([]byte, error) {
	if m.IsZero() {
		return []byte("null"), nil
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m.V)
	if err != nil {
		return nil, fmt.Errorf("encode %T: %w", m.V, err)
	}
	if b == nil {
		b = []byte{}
	}
	return json.Marshal(b)
}

// UnmarshalJSON reads what MarshalJSON wrote.
func (m *Message[M]) UnmarshalJSON(text []byte) error {
	var zero M
	m.V = zero
	var b []byte
	if err := json.Unmarshal(text, &b); err != nil {
		return fmt.Errorf("decode %T: %w", zero, err)
	}
	if b == nil {
		return nil
	}
	v := zero.ProtoReflect().New().Interface().(M)
	if err := proto.Unmarshal(b, v); err != nil {
		return fmt.Errorf("decode %T: %w", zero, err)
	}
	m.V = v
	return nil
}
