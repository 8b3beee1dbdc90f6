// Package ocispec turns a CRI container configuration into an OCI runtime
// specification for a container in a user namespace. The rootless specification
// is the only one: what cannot be honoured without root is left out and listed
// in Output.Warnings, or refused where a container without it would be another one.
package ocispec

import (
	"errors"
	"fmt"
	"syscall"

	"github.com/containerd/errdefs"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-tools/generate"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/errclass"
)

// ErrInvalid wraps every complaint about the request itself.
var ErrInvalid = errclass.New(errdefs.ErrInvalidArgument, "invalid container configuration")

// ErrRecursiveReadOnly says that a mount cannot be made read-only with all that is
// mounted below it (RROUnsupported in k8s.io/cri-api/pkg/errors).
var ErrRecursiveReadOnly = errors.New("recursive read-only mounts are not supported")

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrInvalid, fmt.Errorf(format, args...))
}

// Version is the OCI version of the specifications: the newest that crun 1.8 and
// runc 1.1 both accept.
const Version = "1.0.2"

// PIDNode as Namespaces.PID is the node's own PID namespace (hostPID).
const PIDNode = "host"

// Namespaces are paths of namespaces to join, as the pod pinned them.
type Namespaces struct {
	Net  string // "" = this process's own: only where the node has no separate one
	IPC  string // "" = the node's
	UTS  string // "" = the node's
	PID  string // "" = a new one for the container, PIDNode = the node's, else a path
	User string // "" = the node's; else the pod's, with the mappings of its userns_options
}

// Files are the pod's files on the host that are bound into the container; ""
// leaves one out. A container mount on the same path wins.
type Files struct{ ResolvConf, Hosts, Hostname, Shm string }

// Features are those of the container's OCI runtime. Runtimes silently ignore options
// that they do not support, so these are rejected here.
type Features struct{ RecursiveReadOnlyMounts, IDMappedMounts bool }

// Input is everything that Build looks at.
type Input struct {
	PodID, ID string
	Pod       *runtimeapi.PodSandboxConfig
	Container *runtimeapi.ContainerConfig
	Image     v1.ImageConfig
	// Rootfs is the mounted root file system, writable even for a read-only
	// container: the OCI runtime makes mount points in it first.
	Rootfs     string
	Namespaces Namespaces
	Files      Files
	// Mounts are the container's mounts with image volumes resolved to host paths
	// (Mount.image may stay set: such a mount is always read-only).
	Mounts []*runtimeapi.Mount
	Host   Host
	// CgroupsPath as cgroup.Pod.Container gives it; unused when cgroups are
	// disabled.
	CgroupsPath string
	// WritableCgroup mounts the container's cgroup writable; refused where the host's
	// delegation does not bound what that allows.
	WritableCgroup bool
	Handler        string
	Features       Features
	// SeccompDefault is a profile file that replaces the built-in RuntimeDefault;
	// "" = built in.
	SeccompDefault string
	// CDISpecDirs are the directories of CDI specifications, lowest priority first.
	CDISpecDirs []string
	// Rlimits are defaults for every container, cut to the host's hard limits.
	Rlimits []specs.POSIXRlimit
	Extra   Extra
	// Adjust is what plugins want to be different; nil for nothing.
	Adjust *Adjustment
}

// Output is what the executor needs to create the container.
type Output struct {
	Spec *specs.Spec
	// SeccompBPF is Spec.Linux.Seccomp compiled, base64 of struct sock_filter[];
	// "" when there is no profile or it is left to the OCI runtime.
	SeccompBPF string
	StopSignal syscall.Signal
	// Warnings say in words what could not be honoured.
	Warnings []string
}

// builder carries one Build: the steps add to the specification in order.
type builder struct {
	Input
	sec  *runtimeapi.LinuxContainerSecurityContext
	gen  generate.Generator
	spec *specs.Spec
	out  Output
}

// Build makes the specification. It reads Rootfs (passwd, group), mount and device
// sources and profile files, and changes nothing. ErrInvalid wraps every complaint
// about the request.
func Build(in Input) (Output, error) {
	if in.Container == nil || in.Pod == nil {
		return Output{}, invalid("container or pod configuration is missing")
	}
	if in.Adjust != nil {
		in = in.adjusted()
	}
	b := &builder{Input: in, sec: in.Container.GetLinux().GetSecurityContext()}
	if b.sec == nil {
		b.sec = &runtimeapi.LinuxContainerSecurityContext{}
	}
	b.spec = &specs.Spec{
		Version: Version,
		Root:    &specs.Root{Path: in.Rootfs, Readonly: b.sec.ReadonlyRootfs},
		Process: &specs.Process{},
		Linux:   &specs.Linux{Resources: &specs.LinuxResources{}},
	}
	b.gen = generate.NewFromSpec(b.spec)
	for _, step := range []func() error{
		b.process, b.user, b.capabilities, b.namespaces, b.resources, b.writableCgroup,
		b.mounts, b.devices, b.cdi, b.home, b.extra, b.paths, b.labels, b.seccomp, b.annotations, b.adjust, b.linkedDir,
	} {
		if err := step(); err != nil {
			return Output{}, err
		}
	}
	sortMounts(b.spec.Mounts)
	b.out.Spec = b.spec
	return b.out, nil
}

func (b *builder) warn(format string, args ...any) {
	b.out.Warnings = append(b.out.Warnings, fmt.Sprintf(format, args...))
}

// annotations names the container for people and tools that read the bundle. The
// client's annotations are not passed on: OCI runtimes take orders from some
// (run.oci.*), and the CRI says that annotations should not change behaviour.
func (b *builder) annotations() error {
	meta, pod := b.Container.GetMetadata(), b.Pod.GetMetadata()
	for key, value := range map[string]string{
		"container-type":    "container",
		"sandbox-id":        b.PodID,
		"container-name":    meta.GetName(),
		"sandbox-name":      pod.GetName(),
		"sandbox-namespace": pod.GetNamespace(),
		"sandbox-uid":       pod.GetUid(),
		"image-name":        b.Container.GetImage().GetUserSpecifiedImage(),
	} {
		if value != "" {
			b.gen.AddAnnotation("io.kubernetes.cri."+key, value)
		}
	}
	return nil
}
