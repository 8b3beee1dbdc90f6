package pod

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/labels"
	"github.com/subpod/subpod/pkg/oci"
	"github.com/subpod/subpod/pkg/ocispec"
	"github.com/subpod/subpod/pkg/state"
	"github.com/subpod/subpod/storage"
)

// CreateContainer makes a container in a ready pod sandbox and returns its ID.
// A retry with the same metadata and configuration returns the container that
// the first request made. A command that cannot be started is told by
// StartContainer, as with a runtime that looks only then. ErrInvalid,
// ErrExists, ErrWrongState, storage.ErrImageNotFound.
func (r *Runtime) CreateContainer(ctx context.Context, podID string, cfg *runtimeapi.ContainerConfig) (string, error) {
	if err := validateContainer(cfg); err != nil {
		return "", err
	}
	p, err := r.State.Pod(podID)
	if err != nil {
		return "", err
	}
	unlock, err := r.pods.share(ctx, p.ID)
	if err != nil {
		return "", err
	}
	defer unlock()
	if p, err = r.State.Pod(p.ID); err != nil {
		return "", err
	}
	if p.Status.Phase != state.PodReady {
		return "", fmt.Errorf("%w: pod sandbox %s is not ready", ErrWrongState, p.ID)
	}
	if reason := r.broken(p); reason != "" {
		return "", errors.Join(fmt.Errorf("%w: pod sandbox %s can hold no more containers: %s", ErrWrongState, p.ID, reason), r.losePod(ctx, p, reason))
	}
	id, err := r.createContainer(ctx, p, cfg, func() (state.Pod, error) { return p, nil })
	if err != nil {
		return "", err
	}
	r.emitContainer(id, runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT)
	return id, nil
}

// createContainer is CreateContainer in a pod sandbox that the caller holds.
// whole returns the pod sandbox once all of it is there; what does not need that
// is made before.
func (r *Runtime) createContainer(ctx context.Context, p state.Pod, cfg *runtimeapi.ContainerConfig, whole func() (state.Pod, error)) (string, error) {
	id := newID()
	name := containerName(p.ID, cfg.Metadata)
	existing, settle, err := r.ctrNames.claim(ctx, name, id)
	if err != nil {
		return "", err
	}
	if settle == nil {
		return r.sameContainer(existing, cfg)
	}
	err = r.makeContainer(ctx, p, whole, state.Container{
		ID:        id,
		PodID:     p.ID,
		Config:    state.Msg(cfg),
		Resources: state.Msg(cfg.GetLinux().GetResources()),
		CreatedAt: time.Now(),
		Allocated: state.ContainerResources{Node: r.Node},
	})
	if err != nil {
		err = errors.Join(err, r.undoContainer(ctx, id))
	}
	settle(err == nil)
	if err != nil {
		return "", fmt.Errorf("create container %q in pod sandbox %s: %w", cfg.Metadata.Name, p.ID, err)
	}
	return id, nil
}

// makeContainer is the sequence; each step's facts are in the record before the
// next begins, or follow from the ID.
func (r *Runtime) makeContainer(ctx context.Context, p state.Pod, whole func() (state.Pod, error), c state.Container) error {
	unlock, err := r.containers.alone(ctx, c.ID)
	if err != nil {
		return err
	}
	defer unlock()
	image, err := r.Images.Image(ctx, c.Config.V.GetImage().GetImage())
	if err != nil {
		return err
	}
	facts := &c.Allocated
	facts.ImageID, facts.ImageRef = image.ID, imageRef(image)
	if facts.LogPath, err = logPath(p.Config.V, c.Config.V); err != nil {
		return err
	}
	group, err := r.podCgroup(p)
	if err != nil {
		return err
	}
	var cgroupsPath string
	cgroupsPath, facts.Cgroup = group.Container(c.ID)
	facts.ImageMounts = imageMounts(c)
	if err := r.State.PutContainer(c); err != nil {
		return err
	}
	var ahead sync.WaitGroup
	defer ahead.Wait()
	defer r.releaseSubPaths(c.ID)
	var out ocispec.Output
	pending, err := r.beginAnd(ctx, p, &c, func() (err error) {
		if out, err = r.buildSpec(ctx, p, whole, &c, image, cgroupsPath); err == nil {
			ahead.Go(func() { lookAhead(c.Allocated.Rootfs, out.Spec.Process) })
		}
		return err
	})
	if err != nil {
		return err
	}
	place := func(conmon int) error { return group.Place(ctx, c.ID, conmon) }
	if err := r.createInRuntime(ctx, p, &c, pending, out, place); err != nil {
		return err
	}
	c.Status.Created = true
	if err := r.State.PutContainer(c); err != nil {
		// undoContainer works from the record, which does not know of the process.
		return errors.Join(err, r.deleteFromRuntime(ctx, c))
	}
	if c.Allocated.Runtime != nil {
		r.watchContainer(c)
	}
	return nil
}

// buildSpec mounts the root file system and builds the OCI specification for it.
func (r *Runtime) buildSpec(ctx context.Context, p state.Pod, whole func() (state.Pod, error), c *state.Container, image storage.Image, cgroupsPath string) (ocispec.Output, error) {
	rootfs, err := r.Images.CreateRootfs(ctx, r.rootfsSpec(p, *c))
	if err != nil {
		return ocispec.Output{}, err
	}
	c.Allocated.Rootfs = rootfs.Path
	if p, err = whole(); err != nil {
		return ocispec.Output{}, err
	}
	in, err := r.specInput(ctx, p, *c, image)
	if err != nil {
		return ocispec.Output{}, err
	}
	in.CgroupsPath = cgroupsPath
	out, err := ocispec.Build(in)
	if err != nil {
		return ocispec.Output{}, err
	}
	for _, w := range out.Warnings {
		r.Log.Warn("part of a container's configuration cannot be honoured", "container", c.ID, "what", w)
	}
	user := out.Spec.Process.User
	c.Allocated.Args = out.Spec.Process.Args
	c.Allocated.StopSignal = int(out.StopSignal)
	c.Allocated.User = state.User{UID: user.UID, GID: user.GID, Groups: user.AdditionalGids}
	return out, nil
}

// begin starts the creation of a container by the OCI runtime.
func (r *Runtime) begin(ctx context.Context, p state.Pod, c state.Container) (*oci.Pending, error) {
	bundle := r.containerDir(c.ID)
	if err := os.MkdirAll(bundle, 0o711); err != nil {
		return nil, fmt.Errorf("make the bundle: %w", err)
	}
	if c.Allocated.LogPath != "" {
		if err := os.MkdirAll(filepath.Dir(c.Allocated.LogPath), 0o755); err != nil {
			return nil, fmt.Errorf("make the log's directory: %w", err)
		}
	}
	cfg := c.Config.V
	return r.Executor.Begin(ctx, oci.BeginSpec{
		ID: c.ID, Handler: p.Handler, Bundle: bundle, LogPath: c.Allocated.LogPath,
		Terminal: cfg.Tty, Stdin: cfg.Stdin, StdinOnce: cfg.StdinOnce,
	})
}

// beginAnd begins the creation and calls build at the same time. On error
// nothing of the creation is left.
func (r *Runtime) beginAnd(ctx context.Context, p state.Pod, c *state.Container, build func() error) (*oci.Pending, error) {
	var pending *oci.Pending
	var begin errgroup.Group
	record := *c
	begin.Go(func() (err error) {
		pending, err = r.begin(ctx, p, record)
		return err
	})
	err := errors.Join(build(), begin.Wait())
	if err != nil && pending != nil {
		pending.Abandon()
	}
	return pending, err
}

// createInRuntime has the OCI runtime create the container up to the point where
// its process waits to be started. It begins again when the runtime refused an
// option.
func (r *Runtime) createInRuntime(ctx context.Context, p state.Pod, c *state.Container, pending *oci.Pending, out ocispec.Output, place func(conmon int) error) error {
	for {
		if err := place(pending.PID()); err != nil {
			pending.Abandon()
			return err
		}
		made, err := pending.Create(ctx, out.Spec, out.SeccompBPF)
		switch {
		case err == nil:
			c.Allocated.Runtime = &made
			return nil
		case errors.Is(err, oci.ErrCommandNotFound):
			c.Status.StartError = err.Error()
			return nil
		case !errors.Is(err, oci.ErrRetry):
			return err
		}
		if pending, err = r.begin(ctx, p, *c); err != nil {
			return err
		}
	}
}

func (r *Runtime) deleteFromRuntime(ctx context.Context, c state.Container) error {
	if c.Allocated.Runtime == nil {
		return nil
	}
	ctx, cancel := r.detached(ctx)
	defer cancel()
	return r.Executor.Delete(ctx, c.ID, *c.Allocated.Runtime)
}

func (r *Runtime) rootfsSpec(p state.Pod, c state.Container) storage.RootfsSpec {
	uids, gids := storageMaps(p.Config.V)
	return storage.RootfsSpec{ID: c.ID, ImageID: c.Allocated.ImageID, UIDMap: uids, GIDMap: gids}
}

// specInput gathers what the OCI spec is built from.
func (r *Runtime) specInput(ctx context.Context, p state.Pod, c state.Container, image storage.Image) (ocispec.Input, error) {
	ns, err := r.containerNamespaces(p, c.Config.V)
	if err != nil {
		return ocispec.Input{}, err
	}
	mounts, err := r.resolveMounts(ctx, c)
	if err != nil {
		return ocispec.Input{}, err
	}
	if u := c.Config.V.GetAnnotations()[labels.User]; u != "" {
		image.Config.User = u
	}
	return ocispec.Input{
		PodID:          p.ID,
		ID:             c.ID,
		Pod:            p.Config.V,
		Container:      c.Config.V,
		Image:          image.Config,
		Rootfs:         c.Allocated.Rootfs,
		Namespaces:     ns,
		Files:          r.podFiles(p.ID, p.Allocated.Shm),
		Mounts:         mounts,
		Host:           r.Host,
		Handler:        p.Handler,
		Features:       r.runtimeFeatures(p.Handler),
		SeccompDefault: r.SeccompProfile,
		CDISpecDirs:    r.CDISpecDirs,
	}, nil
}

// sameContainer answers a retried CreateContainer.
func (r *Runtime) sameContainer(id string, cfg *runtimeapi.ContainerConfig) (string, error) {
	c, err := r.State.Container(id)
	if err != nil {
		return "", err
	}
	if !proto.Equal(c.Config.V, cfg) {
		return "", fmt.Errorf("%w: container %q, attempt %d, is %s, made from another configuration; remove it, or raise the attempt", ErrExists, cfg.Metadata.Name, cfg.Metadata.Attempt, id)
	}
	return id, nil
}

// undoContainer removes what a failed CreateContainer made. What cannot be
// undone stays in the record until the pod sandbox is removed.
func (r *Runtime) undoContainer(ctx context.Context, id string) error {
	ctx, cancel := r.detached(ctx)
	defer cancel()
	c, err := r.State.Container(id)
	if errors.Is(err, state.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := r.teardownContainer(ctx, c); err != nil {
		return err
	}
	return r.State.DeleteContainer(id)
}

func containerName(podID string, m *runtimeapi.ContainerMetadata) string {
	return fmt.Sprintf("%s/%s (attempt %d)", podID, part(m.GetName()), m.GetAttempt())
}

func validateContainer(cfg *runtimeapi.ContainerConfig) error {
	switch {
	case cfg == nil:
		return fmt.Errorf("%w: the container has no config", ErrInvalid)
	case cfg.Metadata == nil || cfg.Metadata.Name == "":
		return fmt.Errorf("%w: the container has no metadata.name", ErrInvalid)
	case cfg.GetImage().GetImage() == "":
		return fmt.Errorf("%w: container %q names no image", ErrInvalid, cfg.Metadata.Name)
	}
	return nil
}

// logPath joins the pod's log directory and the container's path below it; ""
// when the container has no log.
func logPath(pod *runtimeapi.PodSandboxConfig, cfg *runtimeapi.ContainerConfig) (string, error) {
	if pod.LogDirectory == "" || cfg.LogPath == "" {
		return "", nil
	}
	if !filepath.IsLocal(cfg.LogPath) {
		return "", fmt.Errorf("%w: log_path %q leads out of the pod's log directory", ErrInvalid, cfg.LogPath)
	}
	return filepath.Join(pod.LogDirectory, cfg.LogPath), nil
}

// imageRef is the digested reference of an image, or its ID where it has none
// (proto: Container.image_ref).
func imageRef(i storage.Image) string {
	if len(i.RepoDigests) > 0 {
		return i.RepoDigests[0]
	}
	return i.ID
}
