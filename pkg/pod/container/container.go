// Package container makes, cleans up and deletes one container: its root file
// system, OCI specification and process. It keeps no records and takes no locks;
// pkg/pod does both.
package container

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/subpod/subpod/pkg/cgroup"
	"github.com/subpod/subpod/pkg/logging"
	"github.com/subpod/subpod/pkg/oci"
	"github.com/subpod/subpod/pkg/ocispec"
	"github.com/subpod/subpod/pkg/state"
	"github.com/subpod/subpod/pkg/volumes"
	"github.com/subpod/subpod/storage"
)

// Builder builds containers. Its methods may be called concurrently for different
// containers. All fields but SeccompProfile, CDISpecDirs and Adjust are needed.
type Builder struct {
	// Dir holds a directory (the bundle) for each container.
	Dir string
	// SubPathDir holds mounts of sub paths while a container is created. It is never
	// removed with its content: see pkg/subpath.
	SubPathDir string
	// HostTree is what the node does not show of the host; nil where it shows all.
	HostTree HostTree
	Images   *storage.Images
	Rootfs   *storage.Rootfs
	Executor *oci.Executor
	// Files returns the files of a pod sandbox that its containers bind.
	Files func(state.Pod) ocispec.Files
	// NodeNetNS is the path of the node network namespace, for hostNetwork pods.
	NodeNetNS string
	Host      ocispec.Host
	Cgroup    cgroup.Delegation
	// SeccompProfile replaces the built-in RuntimeDefault profile; "" = built in.
	SeccompProfile string
	// CDISpecDirs are the directories of CDI specifications, lowest priority first.
	CDISpecDirs []string
	// Volumes keeps named volumes; SecretDir holds a file for each secret.
	Volumes   *volumes.Store
	SecretDir string
	// Adjust asks plugins what they want to be different about a container that is about to
	// be created, and nil where nothing; it is bounded in time. Nil: there are no plugins.
	Adjust func(ctx context.Context, p state.Pod, c state.Container, spec *specs.Spec) (*ocispec.Adjustment, error)
	// Init is the program that is the init process of containers which ask for one.
	Init string
	Log  *slog.Logger

	once logging.Once
}

// HostTree gives what the node may have of the host's tree, as mounts to attach
// (open_tree(2)). A nil file without an error is a path that the node shows anyway.
type HostTree interface {
	Open(path string) (*os.File, error)
	// OpenAbove opens the directory path, made where it is missing and can be, or the
	// nearest one above that is there; found is its path.
	OpenAbove(path string) (tree *os.File, found string, err error)
	// OpenLog opens a file, which is made where it is missing and can be.
	OpenLog(path string) (*os.File, error)
	// HasOwn reports whether the node's own tree is meant to have a path that the node does
	// not get of the host: what it has in the place of the user's files is no answer.
	HasOwn(path string) bool
}

// Clean removes what an exited container no longer needs: processes, the runtime's
// state, mounts, the bundle. The log, the writable layer and the record stay. All
// steps run, also after an error, but while processes may be alive their mounts are
// left alone. Idempotent.
func (b *Builder) Clean(ctx context.Context, c state.Container) error {
	if err := b.endProcesses(ctx, c); err != nil {
		return fmt.Errorf("clean up container %s: %w", c.ID, err)
	}
	errs := []error{b.Rootfs.Unmount(ctx, c.ID)}
	for _, key := range c.Allocated.ImageMounts {
		errs = append(errs, b.Rootfs.UnmountImage(ctx, key))
	}
	if c.Allocated.Cgroup != "" {
		errs = append(errs, b.Cgroup.Remove(ctx, c.Allocated.Cgroup))
	}
	err := errors.Join(errs...)
	if err == nil {
		err = os.RemoveAll(b.bundle(c.ID))
	}
	if err != nil {
		return fmt.Errorf("clean up container %s: %w", c.ID, err)
	}
	return nil
}

// endProcesses ends the container's processes. Where a server has died while it created
// the container, the record does not know them: they are found by the ID.
func (b *Builder) endProcesses(ctx context.Context, c state.Container) error {
	if c.Allocated.Runtime != nil {
		return b.Executor.Delete(ctx, c.ID, *c.Allocated.Runtime)
	}
	if c.Status.Created && !c.Allocated.Remaking {
		return nil // its command could not be started: it never had any
	}
	_, err := b.Executor.Orphans(ctx, func(id string) bool { return id != c.ID }, true)
	return err
}

// Delete removes whatever the record says was made for the container, but for its
// log. Idempotent.
func (b *Builder) Delete(ctx context.Context, c state.Container) error {
	err := errors.Join(b.Clean(ctx, c), b.Rootfs.Delete(ctx, c.ID))
	hostLogs{b.HostTree, b.Log, &b.once}.detach(c)
	return err
}

// OpenRoot returns the root directory of a container's process, with its mounts;
// an error when the process has ended.
func (b *Builder) OpenRoot(c state.Container) (*os.File, error) {
	root, err := os.Open(fmt.Sprintf("/proc/%d/root", c.Allocated.Runtime.Init.PID))
	if err != nil {
		return nil, err
	}
	if !c.Allocated.Runtime.Init.Alive() { // the PID may be another process's
		root.Close()
		return nil, oci.ErrNotRunning
	}
	return root, nil
}

// MountRoot mounts the root file system of a container that does not run and
// returns its root directory. Idempotent; undone by UnmountRoot.
func (b *Builder) MountRoot(ctx context.Context, c state.Container) (*os.File, error) {
	mounted, err := b.Rootfs.Mount(ctx, c.ID)
	if err != nil {
		return nil, err
	}
	root, err := os.Open(mounted.Path)
	if err != nil {
		return nil, fmt.Errorf("open the root file system of container %s: %w", c.ID, err)
	}
	return root, nil
}

// UnmountRoot undoes MountRoot. Idempotent.
func (b *Builder) UnmountRoot(ctx context.Context, c state.Container) error {
	return b.Rootfs.Unmount(ctx, c.ID)
}

func (b *Builder) bundle(id string) string { return filepath.Join(b.Dir, id) }
