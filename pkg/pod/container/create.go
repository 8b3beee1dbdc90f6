package container

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/api"
	"github.com/subpod/subpod/pkg/idmap"
	"github.com/subpod/subpod/pkg/oci"
	"github.com/subpod/subpod/pkg/ocispec"
	"github.com/subpod/subpod/pkg/state"
	"github.com/subpod/subpod/pkg/trace"
	"github.com/subpod/subpod/storage"
)

// Prepared is a container whose root file system is mounted and whose monitor
// waits: what can be made without the pod sandbox. Create or Abandon ends it.
type Prepared struct {
	plan    Plan
	image   storage.Image
	begin   oci.BeginSpec
	pending *oci.Pending
}

// Abandon ends the monitor of a container that is not to be created. What else was
// prepared is Delete's to remove. Idempotent; nil is fine.
func (p *Prepared) Abandon() {
	if p != nil && p.pending != nil {
		p.pending.Abandon()
	}
}

// Prepare mounts the container's root file system and starts its monitor, at the
// same time. Of p it needs the configuration and handler only. It adds what it made
// to c. storage.ErrImageNotFound.
func (b *Builder) Prepare(ctx context.Context, plan Plan, p state.Pod, c *state.Container) (*Prepared, error) {
	_, step := trace.Start(ctx, "look the image up")
	image, err := b.Images.Get(ctx, plan.Config.Image.Image)
	step.End(err)
	if err != nil {
		return nil, err
	}
	if err := checkPlatform(plan, image); err != nil {
		return nil, err
	}
	c.Allocated.ImageID, c.Allocated.ImageName = image.ID, imageName(plan.Config.Image, image)
	c.Allocated.ImageRef = imageRef(c.Allocated.ImageName, image)
	if err := b.makeDirs(p, *c); err != nil {
		return nil, err
	}
	cfg := plan.Config
	out := &Prepared{plan: plan, image: image, begin: oci.BeginSpec{
		ID: c.ID, Handler: p.Handler, Bundle: b.bundle(c.ID), LogPath: plan.logPath,
		Terminal: cfg.Tty, Stdin: cfg.Stdin, StdinOnce: cfg.StdinOnce,
		Confined: ocispec.Confined(cfg.GetLinux().GetSecurityContext()),
	}}
	if p.Allocated.Switched {
		out.begin.Switched = p.ID
	}
	var both errgroup.Group
	both.Go(func() (err error) {
		_, step := trace.Start(ctx, "start the monitor")
		out.pending, err = b.Executor.Begin(ctx, out.begin)
		step.End(err)
		return err
	})
	both.Go(func() error {
		_, step := trace.Start(ctx, "root file system")
		mounted, err := b.Rootfs.Create(ctx, rootfsSpec(p, *c))
		step.End(err)
		c.Allocated.Rootfs = mounted.Path
		return err
	})
	if err := both.Wait(); err != nil {
		out.Abandon()
		return nil, err
	}
	return out, nil
}

// makeDirs makes the bundle and the directory of the log.
func (b *Builder) makeDirs(p state.Pod, c state.Container) error {
	if err := os.MkdirAll(b.bundle(c.ID), 0o711); err != nil {
		return fmt.Errorf("make the bundle: %w", err)
	}
	if c.Allocated.LogPath == "" {
		return nil
	}
	if err := (hostLogs{b.HostTree, b.Log, &b.once}).attach(filepath.Clean(p.Config.V.GetLogDirectory()), c.Allocated.LogPath); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(c.Allocated.LogPath), 0o755); err != nil {
		return fmt.Errorf("make the log's directory: %w", err)
	}
	return nil
}

// Create has the OCI runtime make a prepared container in the pod sandbox p, up to
// the point where its process waits to be started, and adds what it made to c. A
// command that is not there, or cannot be executed, is no error: it is kept in
// c.Status.StartError, for StartContainer to return.
func (b *Builder) Create(ctx context.Context, prepared *Prepared, p state.Pod, c *state.Container) error {
	defer prepared.Abandon()
	defer b.releaseSources(c.ID)
	mounting, step := trace.Start(ctx, "mounts and files")
	in, err := specInput(mounting, b, prepared, p, c)
	step.End(err)
	if err != nil {
		return err
	}
	_, step = trace.Start(ctx, "OCI specification")
	out, err := ocispec.Build(in)
	if err == nil && b.Adjust != nil {
		out, err = adjust(ctx, b, in, out, prepared.plan, p, c)
	}
	step.End(err)
	if err != nil {
		return err
	}
	if s := out.Spec.Linux.Seccomp; s != nil && s.ListenerPath != "" && p.Allocated.Switched {
		// The kernel allows one listener for a process (seccomp(2), EBUSY).
		return invalid("container %q: its seccomp profile has a listener (listenerPath), and the pod's connections are switched to the host's network by another one: set the annotation %s of the pod to %s",
			c.ID, api.AnnotationEgress, api.EgressUplink)
	}
	for _, w := range out.Warnings {
		b.Log.Log(ctx, b.once.Sentence(w), "part of a container's configuration cannot be honoured (said once, of others at level debug)", "container", c.ID, "what", w)
	}
	user := out.Spec.Process.User
	c.Allocated.Args = out.Spec.Process.Args
	c.Allocated.StopSignal = int(out.StopSignal)
	c.Allocated.User = state.User{UID: user.UID, GID: user.GID, Groups: user.AdditionalGids}
	var ahead sync.WaitGroup
	defer ahead.Wait()
	ahead.Go(func() { prefetch(c.Allocated.Rootfs, out.Spec.Process) })
	_, step = trace.Start(ctx, "OCI create")
	made, err := create(ctx, b, prepared, c.ID, out)
	step.End(err)
	if errors.Is(err, oci.ErrCommandNotFound) || errors.Is(err, oci.ErrCommandNotExecutable) {
		c.Status.StartError = err.Error()
		return nil
	}
	if err != nil {
		return err
	}
	c.Allocated.Runtime = &made
	return nil
}

// create runs the OCI runtime, once more for each option that the runtime turns out
// not to take.
func create(ctx context.Context, b *Builder, prepared *Prepared, id string, out ocispec.Output) (made oci.Container, err error) {
	for {
		if err := prepared.plan.group.Place(ctx, id, prepared.pending.PID()); err != nil {
			return made, err
		}
		made, err = prepared.pending.Create(ctx, out.Spec, out.SeccompBPF)
		if !errors.Is(err, oci.ErrRetry) {
			return made, err
		}
		if prepared.pending, err = b.Executor.Begin(ctx, prepared.begin); err != nil {
			return made, err
		}
	}
}

// specInput gathers what the OCI specification is built from.
func specInput(ctx context.Context, b *Builder, prepared *Prepared, p state.Pod, c *state.Container) (ocispec.Input, error) {
	namespaces := b.namespaces(prepared.plan, p)
	mounts, err := allMounts(ctx, b, prepared, p, c, namespaces.User)
	if err != nil {
		return ocispec.Input{}, err
	}
	more, err := extra(prepared.plan.options, b.Init)
	if err != nil {
		return ocispec.Input{}, err
	}
	cfg, err := b.hostFiles(c.ID, prepared.plan.Config)
	if err != nil {
		return ocispec.Input{}, err
	}
	image := prepared.image.Config
	if u := prepared.plan.Config.Annotations[api.AnnotationUser]; u != "" {
		image.User = u
	}
	writableCgroup, err := api.WritableCgroup(prepared.plan.Config.Annotations, p.Config.V.Annotations)
	if err != nil {
		return ocispec.Input{}, invalid("%w", err)
	}
	features := b.Executor.Handlers()[p.Handler]
	return ocispec.Input{
		PodID:          p.ID,
		ID:             c.ID,
		Pod:            p.Config.V,
		Container:      cfg,
		Image:          image,
		Rootfs:         c.Allocated.Rootfs,
		Namespaces:     namespaces,
		Files:          b.Files(p),
		Mounts:         mounts,
		Host:           b.Host,
		CgroupsPath:    prepared.plan.cgroupsPath,
		WritableCgroup: writableCgroup,
		Handler:        p.Handler,
		Features:       ocispec.Features{RecursiveReadOnlyMounts: features.RecursiveReadOnlyMounts, IDMappedMounts: features.IDMappedMounts},
		SeccompDefault: b.SeccompProfile,
		CDISpecDirs:    b.CDISpecDirs,
		Extra:          more,
	}, nil
}

// allMounts returns the mounts of a container, whatever asks for them. userNS is the pod's
// own user namespace, "" where it has none.
func allMounts(ctx context.Context, b *Builder, prepared *Prepared, p state.Pod, c *state.Container, userNS string) ([]*runtimeapi.Mount, error) {
	options := prepared.plan.options
	if err := fillVolumes(ctx, b, *c, options.Volumes); err != nil {
		return nil, err
	}
	mounts, err := b.resolveMounts(ctx, prepared.plan, c.ID)
	if err != nil {
		return nil, err
	}
	if err := b.mapIDs(userNS, p, c.ID, mounts); err != nil {
		return nil, err
	}
	b.recordSources(prepared.plan, c, mounts)
	volumes, err := imageVolumes(ctx, b, prepared, c)
	if err != nil {
		return nil, err
	}
	secrets, err := secretMounts(b, c.ID, p, options.Secrets)
	return slices.Concat(mounts, volumes, secrets), err
}

// rootfsSpec describes the container's root file system, with the mappings of the
// pod's own user namespace where it has one.
func rootfsSpec(p state.Pod, c state.Container) storage.RootfsSpec {
	spec := storage.RootfsSpec{ID: c.ID, ImageID: c.Allocated.ImageID}
	if hasUserNamespace(p) {
		opts := p.Config.V.GetLinux().GetSecurityContext().GetNamespaceOptions().GetUsernsOptions()
		spec.UIDMap, spec.GIDMap = idMaps(opts.GetUids()), idMaps(opts.GetGids())
	}
	return spec
}

// hasUserNamespace reports whether the pod sandbox has a user namespace of its own.
func hasUserNamespace(p state.Pod) bool {
	opts := p.Config.V.GetLinux().GetSecurityContext().GetNamespaceOptions().GetUsernsOptions()
	return opts.GetMode() == runtimeapi.NamespaceMode_POD && opts != nil
}

func idMaps(mappings []*runtimeapi.IDMapping) []idmap.Map {
	var maps []idmap.Map
	for _, m := range mappings {
		maps = append(maps, idmap.Map{Container: m.ContainerId, Host: m.HostId, Size: m.Length})
	}
	return maps
}

// imageRef is the digested reference of an image in the repository of the name that it was
// asked for by, else in another one, or its ID where it has none (proto:
// Container.image_ref).
func imageRef(name string, i storage.Image) string {
	return cmp.Or(slices.Concat([]string{i.DigestIn(name)}, i.RepoDigests, []string{i.ID})...)
}

// imageName is the name by which people know the image: that of the request, but
// where that is an ID, as a kubelet sends it, what the user specified, or a tag.
func imageName(asked *runtimeapi.ImageSpec, i storage.Image) string {
	if asked.UserSpecifiedImage != "" {
		return asked.UserSpecifiedImage
	}
	id := strings.TrimPrefix(i.ID, "sha256:")
	if short := strings.TrimPrefix(asked.Image, "sha256:"); !strings.HasPrefix(id, short) {
		return asked.Image
	}
	return cmp.Or(slices.Concat(i.RepoTags, i.RepoDigests, []string{asked.Image})...)
}
