// Package control implements subpod's own gRPC service (package api) with the core.
//
// A handler checks its request, calls the core and converts the result; package rpc turns
// the core's errors into gRPC codes. The package holds no state.
package control

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"syscall"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/api"
	"github.com/subpod/subpod/pkg/audit"
	"github.com/subpod/subpod/pkg/pod"
	"github.com/subpod/subpod/pkg/state"
	"github.com/subpod/subpod/pkg/stats"
	"github.com/subpod/subpod/pkg/stdio"
	"github.com/subpod/subpod/pkg/supervise"
	"github.com/subpod/subpod/pkg/trace"
	"github.com/subpod/subpod/pkg/volumes"
	"github.com/subpod/subpod/storage"
)

// Dependencies are what the service is served from. All are needed but the last two.
type Dependencies struct {
	Containers   Containers
	Sessions     Sessions
	Restarter    *pod.Restarter
	Supervisor   *supervise.Supervisor
	Copier       *pod.Copier
	Checker      *pod.Checker
	Images       *storage.Images
	Rootfs       *storage.Rootfs
	NamedVolumes *volumes.Store
	State        *state.Store
	Audit        *audit.Log
	Recorder     *trace.Recorder
	Level        *slog.LevelVar // of the server's log
	Named        Networks       // nil where pods have no network of their own
	// HostTree is what the node does not show of the host, to be attached below TempDir;
	// nil where it shows all.
	HostTree HostTree
	TempDir  string
}

// HostTree gives what the node may have of the host's tree, as mounts to attach
// (open_tree(2)). A nil file without an error is a path that the node shows anyway.
type HostTree interface {
	Open(path string) (*os.File, error)
}

// Containers is what the service needs of pod.Manager, which documents the methods.
type Containers interface {
	RunPodWith(ctx context.Context, cfg *runtimeapi.PodSandboxConfig, handler string, ctr *runtimeapi.ContainerConfig) (podID, id string, err error)
	CreateContainer(ctx context.Context, podID string, cfg *runtimeapi.ContainerConfig) (string, error)
	RemoveContainer(ctx context.Context, id string) error
	RemoveUnstarted(ctx context.Context, podID, id string) error
	StartContainer(ctx context.Context, id string) error
	WaitContainer(ctx context.Context, id string, attempt *uint32) (state.ContainerStatus, error)
	ExitOf(id string) func(context.Context) (state.ContainerStatus, error)
}

// Sessions is what the service needs of pod.Sessions, which documents the methods.
type Sessions interface {
	CheckExec(id string, cmd []string) error
	ExecAs(ctx context.Context, id string, cmd []string, streams stdio.Streams, options api.ExecOptions) (int32, error)
	ExecDetached(ctx context.Context, id string, cmd []string, tty bool, options api.ExecOptions) error
	CheckAttach(id string, tty bool) error
	Attach(ctx context.Context, id string, streams stdio.Streams) error
	PortForward(ctx context.Context, podID string, port int32, client io.ReadWriteCloser) error
	Signal(ctx context.Context, id string, sig syscall.Signal) error
	Processes(id string) ([]stats.Process, error)
}

// invalid returns an error of the class errdefs.ErrInvalidArgument.
func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: %w", errdefs.ErrInvalidArgument, fmt.Errorf(format, args...))
}

// service implements api.Server.
type service struct {
	*Dependencies
	supervision
	*volumeService
	*commitService
	*observeService
}

// Register adds the service to a gRPC server.
func Register(s grpc.ServiceRegistrar, d Dependencies) {
	api.Register(s, &service{&d, supervision{&d}, &volumeService{d.NamedVolumes, d.State}, &commitService{d.Images, d.Rootfs, d.State}, &observeService{d.Recorder, d.Level}})
}
