package nri

import (
	"fmt"
	"path"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/containerd/nri/pkg/adaptation"
	"github.com/containerd/nri/pkg/api"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/ocispec"
)

func invalid(format string, args ...any) error {
	return fmt.Errorf("adjustment by an NRI plugin: %w: %w", errdefs.ErrInvalidArgument, fmt.Errorf(format, args...))
}

// adjustment translates what plugins want; nil for nothing. What would make the container
// another one, and cannot be had, is refused; what only makes it slower is left out. asked is
// the container as plugins have last seen it: the library takes away there what they remove.
func adjustment(a *adaptation.ContainerAdjustment, spec *specs.Spec, asked *adaptation.Container) (*ocispec.Adjustment, error) {
	if a == nil {
		return nil, nil
	}
	out := &ocispec.Adjustment{Args: a.GetArgs()}
	linux := a.GetLinux()
	if err := refuse(linux); err != nil {
		return nil, err
	}
	out.LeftOut = leftOut(linux)
	for _, e := range a.GetEnv() {
		if name, gone := api.IsMarkedForRemoval(e.GetKey()); gone {
			out.UnsetEnv = append(out.UnsetEnv, name)
		} else {
			out.Env = append(out.Env, &runtimeapi.KeyValue{Key: e.GetKey(), Value: []byte(e.GetValue())})
		}
	}
	for key, value := range a.GetAnnotations() {
		if name, gone := api.IsMarkedForRemoval(key); gone {
			out.RemoveAnnotations = append(out.RemoveAnnotations, name)
		} else {
			if out.Annotations == nil {
				out.Annotations = map[string]string{}
			}
			out.Annotations[key] = value
		}
	}
	for _, d := range a.GetCDIDevices() {
		out.CDIDevices = append(out.CDIDevices, d.GetName())
	}
	for _, l := range a.GetRlimits() {
		out.Rlimits = append(out.Rlimits, specs.POSIXRlimit{Type: l.GetType(), Hard: l.GetHard(), Soft: l.GetSoft()})
	}
	for _, m := range a.GetMounts() {
		if err := addMount(out, m); err != nil {
			return nil, err
		}
	}
	for _, d := range linux.GetDevices() {
		if err := addDevice(out, d); err != nil {
			return nil, err
		}
	}
	out.Hooks = hooks(a.GetHooks())
	out.Resources = toCRI(linux.GetResources())
	if score := linux.GetOomScoreAdj(); score != nil {
		v := score.GetValue()
		out.OOMScoreAdj = &v
	}
	out.Seccomp = seccomp(linux.GetSeccompPolicy())
	removals(out, spec, asked)
	if reflect.DeepEqual(*out, ocispec.Adjustment{}) {
		return nil, nil
	}
	return out, nil
}

// removals adds what has gone of the container's environment and mounts.
func removals(out *ocispec.Adjustment, spec *specs.Spec, asked *adaptation.Container) {
	name := func(v string) string { n, _, _ := strings.Cut(v, "="); return n }
	for _, v := range spec.Process.Env {
		left := slices.ContainsFunc(asked.GetEnv(), func(w string) bool { return name(w) == name(v) })
		if !left && !slices.Contains(out.UnsetEnv, name(v)) {
			out.UnsetEnv = append(out.UnsetEnv, name(v))
		}
	}
	for _, m := range spec.Mounts {
		left := slices.ContainsFunc(asked.GetMounts(), func(n *adaptation.Mount) bool { return n.GetDestination() == m.Destination })
		if !left && !slices.Contains(out.RemoveMounts, m.Destination) {
			out.RemoveMounts = append(out.RemoveMounts, m.Destination)
		}
	}
}

// refuse refuses what is the pod sandbox's, or needs root.
func refuse(l *adaptation.LinuxContainerAdjustment) error {
	switch {
	case l.GetCgroupsPath() != "":
		return invalid("cgroups_path %q: the cgroup of a container is the pod's", l.GetCgroupsPath())
	case len(l.GetNamespaces()) > 0:
		return invalid("namespace %q: those of a container are the pod's", l.GetNamespaces()[0].GetType())
	case len(l.GetSysctl()) > 0:
		return invalid("sysctls are set for the pod, before its containers")
	case len(l.GetNetDevices()) > 0:
		return invalid("network devices of the host cannot be moved without root")
	}
	return nil
}

// leftOut names what the node cannot do.
func leftOut(l *adaptation.LinuxContainerAdjustment) (out []string) {
	for what, wanted := range map[string]bool{
		"I/O priority": l.GetIoPriority() != nil, "scheduler": l.GetScheduler() != nil, "memory policy": l.GetMemoryPolicy() != nil,
		"RDT": l.GetRdt().GetClosId() != nil || l.GetRdt().GetSchemata() != nil || l.GetRdt().GetEnableMonitoring() != nil || l.GetResources().GetRdtClass() != nil, "block I/O class": l.GetResources().GetBlockioClass() != nil,
	} {
		if wanted {
			out = append(out, "left out, although an NRI plugin asks for it: "+what)
		}
	}
	return out
}

// propagations are the options of mounts that the CRI has a field for.
var propagations = map[string]runtimeapi.MountPropagation{
	"private": runtimeapi.MountPropagation_PROPAGATION_PRIVATE, "rprivate": runtimeapi.MountPropagation_PROPAGATION_PRIVATE,
	"slave": runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER, "rslave": runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER,
	"shared": runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL, "rshared": runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL,
}

func addMount(out *ocispec.Adjustment, m *adaptation.Mount) error {
	if dst, gone := m.IsMarkedForRemoval(); gone {
		out.RemoveMounts = append(out.RemoveMounts, path.Clean(dst))
		return nil
	}
	if m.GetType() == "tmpfs" {
		out.Tmpfs = append(out.Tmpfs, specs.Mount{Destination: m.GetDestination(), Options: m.GetOptions()})
		return nil
	}
	if t := m.GetType(); t != "bind" && t != "" {
		return invalid("mount of type %.40q on %.80q: bind and tmpfs are known", t, m.GetDestination())
	}
	mount := &runtimeapi.Mount{ContainerPath: m.GetDestination(), HostPath: m.GetSource()}
	for _, o := range m.GetOptions() {
		p, isPropagation := propagations[o]
		switch {
		case isPropagation:
			mount.Propagation = p
		case o == "ro":
			mount.Readonly = true
		case o == "rro":
			mount.Readonly, mount.RecursiveReadOnly = true, true
		case o == "bind" || o == "rbind" || o == "rw":
		default:
			mount.MountOptions = append(mount.MountOptions, o)
		}
	}
	out.Mounts = append(out.Mounts, mount)
	return nil
}

// addDevice binds the host's device of the same path, which must be the one that is meant:
// nobody here can make device nodes.
func addDevice(out *ocispec.Adjustment, d *adaptation.LinuxDevice) error {
	p, gone := d.IsMarkedForRemoval()
	if gone {
		out.RemoveDevices = append(out.RemoveDevices, path.Clean(p))
		return nil
	}
	var st unix.Stat_t
	if err := unix.Stat(d.GetPath(), &st); err == nil && unix.Mkdev(uint32(d.GetMajor()), uint32(d.GetMinor())) != st.Rdev {
		return invalid("device %.80q is %d:%d on the host, not %d:%d", d.GetPath(), unix.Major(st.Rdev), unix.Minor(st.Rdev), d.GetMajor(), d.GetMinor())
	}
	out.Devices = append(out.Devices, &runtimeapi.Device{HostPath: d.GetPath(), ContainerPath: d.GetPath(), Permissions: "rwm"})
	return nil
}

func hooks(h *adaptation.Hooks) *specs.Hooks {
	if h == nil {
		return nil
	}
	list := func(in []*adaptation.Hook) (out []specs.Hook) {
		for _, hook := range in {
			out = append(out, hook.ToOCI())
		}
		return out
	}
	out := &specs.Hooks{
		CreateRuntime: list(h.GetCreateRuntime()), CreateContainer: list(h.GetCreateContainer()),
		StartContainer: list(h.GetStartContainer()), Poststart: list(h.GetPoststart()), Poststop: list(h.GetPoststop()),
	}
	//lint:ignore SA1019 plugins still use it
	out.Prestart = list(h.GetPrestart())
	return out
}

func seccomp(p *api.LinuxSeccomp) *specs.LinuxSeccomp {
	if p == nil {
		return nil
	}
	out := &specs.LinuxSeccomp{
		DefaultAction: specs.LinuxSeccompAction(p.GetDefaultAction()), ListenerPath: p.GetListenerPath(), ListenerMetadata: p.GetListenerMetadata(),
		Syscalls: api.ToOCILinuxSyscalls(p.GetSyscalls()),
	}
	if e := p.GetDefaultErrno(); e != nil {
		errno := uint(e.GetValue())
		out.DefaultErrnoRet = &errno
	}
	for _, a := range p.GetArchitectures() {
		out.Architectures = append(out.Architectures, specs.Arch(a))
	}
	for _, f := range p.GetFlags() {
		out.Flags = append(out.Flags, specs.LinuxSeccompFlag(f))
	}
	return out
}

// pidsMax is a limit of processes as cgroup v2 has it.
func pidsMax(limit int64) string {
	if limit <= 0 {
		return "max"
	}
	return strconv.FormatInt(limit, 10)
}
