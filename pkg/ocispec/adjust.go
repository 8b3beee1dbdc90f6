package ocispec

import (
	"encoding/base64"
	"errors"
	"path"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/ocispec/seccompbpf"
)

// Adjustment is what a plugin wants to be different about a container. It is checked as the
// client's request is: what needs a privilege that the node has not is refused or left out in
// the same way.
type Adjustment struct {
	// Mounts and Tmpfs come in the place of those on the same path, whoever asked for them;
	// RemoveMounts are paths that get no mount.
	Mounts       []*runtimeapi.Mount
	Tmpfs        []specs.Mount
	RemoveMounts []string
	// Devices are bound from the host; RemoveDevices are paths in the container.
	Devices       []*runtimeapi.Device
	RemoveDevices []string
	CDIDevices    []string
	Env           []*runtimeapi.KeyValue
	UnsetEnv      []string
	// Args replace the command with its arguments; none leaves them.
	Args []string
	// Annotations are of the OCI specification, for hooks; RemoveAnnotations are names.
	Annotations       map[string]string
	RemoveAnnotations []string
	// Hooks are run in the node, after those of CDI devices.
	Hooks   *specs.Hooks
	Rlimits []specs.POSIXRlimit
	// Resources are laid over the request's: what is not set stays.
	Resources   *runtimeapi.LinuxContainerResources
	OOMScoreAdj *int64
	// Seccomp replaces the profile.
	Seccomp *specs.LinuxSeccomp
	// LeftOut says in words what the plugins want and the node cannot do.
	LeftOut []string
}

// runtimeAnnotations begins the names of annotations that crun takes orders from: subpod
// uses some of them itself.
const runtimeAnnotations = "run.oci."

// adjusted returns the input as if the client had asked for what the adjustment wants.
func (in Input) adjusted() Input {
	a := in.Adjust
	c := proto.CloneOf(in.Container)
	in.Container = c
	gone := func(p string) bool {
		p = path.Clean(p)
		return slices.Contains(a.RemoveMounts, p) ||
			slices.ContainsFunc(a.Mounts, func(m *runtimeapi.Mount) bool { return path.Clean(m.ContainerPath) == p }) ||
			slices.ContainsFunc(a.Tmpfs, func(m specs.Mount) bool { return path.Clean(m.Destination) == p })
	}
	in.Mounts = slices.DeleteFunc(slices.Clone(in.Mounts), func(m *runtimeapi.Mount) bool { return gone(m.ContainerPath) })
	in.Mounts = append(in.Mounts, a.Mounts...)
	in.Extra.Tmpfs = slices.DeleteFunc(slices.Clone(in.Extra.Tmpfs), func(m specs.Mount) bool { return gone(m.Destination) })
	in.Extra.Tmpfs = append(in.Extra.Tmpfs, a.Tmpfs...)
	c.Devices = slices.DeleteFunc(c.Devices, func(d *runtimeapi.Device) bool {
		return slices.Contains(a.RemoveDevices, path.Clean(d.ContainerPath))
	})
	c.Devices = append(c.Devices, a.Devices...)
	for _, name := range a.CDIDevices {
		c.CDIDevices = append(c.CDIDevices, &runtimeapi.CDIDevice{Name: name})
	}
	c.Envs = slices.DeleteFunc(c.Envs, func(e *runtimeapi.KeyValue) bool { return slices.Contains(a.UnsetEnv, e.Key) })
	c.Envs = append(c.Envs, a.Env...)
	in.Extra.UnsetEnv = slices.Concat(in.Extra.UnsetEnv, a.UnsetEnv)
	in.Extra.Rlimits = slices.Concat(in.Extra.Rlimits, a.Rlimits)
	if len(a.Args) > 0 {
		c.Command, c.Args = a.Args, nil
	}
	if a.Resources != nil || a.OOMScoreAdj != nil {
		if c.Linux == nil {
			c.Linux = &runtimeapi.LinuxContainerConfig{}
		}
		c.Linux.Resources = a.Limits(c.Linux.Resources)
	}
	return in
}

// Limits returns the limits of a request as the adjustment changes them.
func (a *Adjustment) Limits(asked *runtimeapi.LinuxContainerResources) *runtimeapi.LinuxContainerResources {
	if a.Resources == nil && a.OOMScoreAdj == nil {
		return asked
	}
	out := &runtimeapi.LinuxContainerResources{}
	if asked != nil {
		out = proto.CloneOf(asked)
	}
	if a.Resources != nil {
		if len(a.Resources.HugepageLimits) > 0 {
			out.HugepageLimits = nil // a list is replaced, not added to
		}
		proto.Merge(out, a.Resources)
	}
	if a.OOMScoreAdj != nil {
		out.OomScoreAdj = *a.OOMScoreAdj
	}
	return out
}

// adjust applies what no request can ask for.
func (b *builder) adjust() error {
	a := b.Adjust
	if a == nil {
		return nil
	}
	b.spec.Mounts = slices.DeleteFunc(b.spec.Mounts, func(m specs.Mount) bool {
		return slices.Contains(a.RemoveMounts, m.Destination) || slices.Contains(a.RemoveDevices, m.Destination)
	})
	for _, name := range a.RemoveAnnotations {
		b.gen.RemoveAnnotation(name)
	}
	for name, value := range a.Annotations {
		if strings.HasPrefix(name, runtimeAnnotations) {
			return invalid("annotation %.80q gives orders to the OCI runtime", name)
		}
		if err := errors.Join(carriable("annotation", name), carriable("annotation", value)); err != nil {
			return err
		}
		b.gen.AddAnnotation(name, value)
	}
	if err := b.adjustHooks(a.Hooks); err != nil {
		return err
	}
	return b.adjustSeccomp(a.Seccomp)
}

func (b *builder) adjustHooks(more *specs.Hooks) error {
	if more == nil {
		return nil
	}
	if b.spec.Hooks == nil {
		b.spec.Hooks = &specs.Hooks{}
	}
	//lint:ignore SA1019 plugins still use it
	prestart := more.Prestart
	for _, hook := range slices.Concat(prestart, more.CreateRuntime, more.CreateContainer, more.StartContainer, more.Poststart, more.Poststop) {
		if !path.IsAbs(hook.Path) {
			return invalid("hook %.80q is not an absolute path", hook.Path)
		}
		for _, s := range slices.Concat([]string{hook.Path}, hook.Args, hook.Env) {
			if err := carriable("hook", s); err != nil {
				return err
			}
		}
	}
	h := b.spec.Hooks
	//lint:ignore SA1019 plugins still use it
	h.Prestart = append(h.Prestart, prestart...)
	h.CreateRuntime = append(h.CreateRuntime, more.CreateRuntime...)
	h.CreateContainer = append(h.CreateContainer, more.CreateContainer...)
	h.StartContainer = append(h.StartContainer, more.StartContainer...)
	h.Poststart = append(h.Poststart, more.Poststart...)
	h.Poststop = append(h.Poststop, more.Poststop...)
	return nil
}

func (b *builder) adjustSeccomp(profile *specs.LinuxSeccomp) error {
	if profile == nil {
		return nil
	}
	if err := checkNotify(profile); err != nil {
		return invalid("seccomp profile: %w", err)
	}
	b.spec.Linux.Seccomp, b.out.SeccompBPF = profile, ""
	bpf, err := seccompbpf.Compile(profile)
	if errors.Is(err, seccompbpf.ErrUnsupported) {
		return nil // the OCI runtime compiles it
	}
	if err != nil {
		return invalid("seccomp profile: %w", err)
	}
	b.out.SeccompBPF = base64.StdEncoding.EncodeToString(bpf)
	return nil
}
