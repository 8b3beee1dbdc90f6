// Package sandbox makes and removes what one pod sandbox consists of: its files,
// pinned namespaces, network and cgroup. It keeps no records and takes no locks;
// pkg/pod does both.
package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/netns"
	"github.com/subpod/subpod/pkg/cgroup"
	"github.com/subpod/subpod/pkg/state"
	"github.com/subpod/subpod/pkg/trace"
)

// Builder builds pod sandboxes. Its methods may be called concurrently for
// different pod sandboxes. All fields are needed.
type Builder struct {
	// Dir holds a directory for each pod sandbox.
	Dir     string
	Host    Host
	DNS     DNS
	Network netns.Network
	Cgroup  cgroup.Delegation
}

// Build makes the pod sandbox's files and namespaces, its network and its cgroup, in this
// order. The result of each step is stored in p before the next step begins, so
// that Teardown undoes a Build that failed in the middle. netns.ErrPortTaken,
// netns.ErrNoAddress, netns.ErrNotReady, netns.ErrSysctl.
func (b *Builder) Build(ctx context.Context, plan Plan, p *state.Pod) error {
	if plan.refused != nil {
		return plan.refused
	}
	made := &p.Allocated
	dir := b.podDir(p.ID)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make the pod's directory: %w", err)
	}
	// Both at the same time: neither needs the other.
	files := make(chan error, 1)
	go func() { files <- trace.Do(ctx, "files", func() error { return b.makeFiles(dir, plan, made) }) }()
	spec := plan.pins
	spec.Dir = dir
	_, step := trace.Start(ctx, "namespaces")
	pins, err := netns.Pin(ctx, spec)
	step.End(err)
	made.Pins = pins
	if err := errors.Join(<-files, err); err != nil {
		return err
	}
	if plan.network {
		connecting, step := trace.Start(ctx, "network")
		err := b.connect(connecting, plan, p)
		step.End(err)
		if err != nil {
			return err
		}
		if err := b.writeNames(dir, plan, made.Network); err != nil {
			return err
		}
	}
	return trace.Do(ctx, "cgroup", func() error {
		if err := plan.group.Make(); err != nil {
			return err
		}
		// What is left out for want of a controller is in the status of the runtime.
		_, err := b.Limit(*p)
		return err
	})
}

// makeFiles makes what lies in the pod's directory, and the volumes in memory.
func (b *Builder) makeFiles(dir string, plan Plan, made *state.PodResources) error {
	if err := mountTmpfs(dir, plan.shmSize); err != nil {
		return err
	}
	if err := b.writeFiles(dir, plan); err != nil {
		return err
	}
	if plan.pins.IPC {
		made.Shm = filepath.Join(dir, shmDir)
	}
	return mountVolumes(dir, plan.volumes)
}

// connect joins the pod sandbox to the pod network.
func (b *Builder) connect(ctx context.Context, plan Plan, p *state.Pod) error {
	result, err := b.Network.Setup(ctx, plan.networkPod(*p))
	if err != nil {
		return fmt.Errorf("set up the network: %w", err)
	}
	p.Allocated.Network = &result
	if len(plan.ifSysctls) > 0 {
		return netns.ApplySysctls(p.Allocated.Pins.Net, plan.ifSysctls)
	}
	return nil
}

// Teardown removes whatever the record says was made for the pod sandbox. All steps
// run, also after an error. Idempotent.
func (b *Builder) Teardown(ctx context.Context, p state.Pod) error {
	dir := b.podDir(p.ID)
	var errs []error
	if p.Allocated.NetworkAsked {
		errs = append(errs, trace.Do(ctx, "network", func() error { return b.Network.Teardown(ctx, p.ID) }))
	}
	errs = append(errs, trace.Do(ctx, "release mounts and namespaces", func() error { return Release(dir) }))
	if p.Allocated.Cgroup != "" {
		errs = append(errs, b.Cgroup.Remove(ctx, p.Allocated.Cgroup))
	}
	err := errors.Join(errs...)
	if err == nil {
		err = os.RemoveAll(dir)
	}
	if err != nil {
		return fmt.Errorf("tear down pod sandbox %s: %w", p.ID, err)
	}
	return nil
}

// Release frees what holds a pod sandbox's directory: mounts and pins. Idempotent.
func Release(dir string) error {
	return errors.Join(unmountAll(dir), netns.Unpin(dir))
}

// Lost returns what a ready pod sandbox has lost, so that it can hold no more
// containers; "" when it has lost nothing.
func (b *Builder) Lost(p state.Pod) string {
	pins := p.Allocated.Pins
	for _, pin := range []string{pins.Net, pins.IPC, pins.UTS, pins.User, pins.PID} {
		if pin != "" && !isNamespace(pin) {
			return fmt.Sprintf("its namespace %s is gone", filepath.Base(pin))
		}
	}
	if !pins.Pause.IsZero() && pins.Pause.Ending() {
		return "the pause process of its PID namespace has ended"
	}
	return ""
}

// Renamed has the pods that look up names find the pod sandbox by those of the plan.
func (b *Builder) Renamed(ctx context.Context, plan Plan, p state.Pod) {
	if n, ok := b.Network.(renamer); ok && p.Allocated.NetworkAsked {
		n.Rename(ctx, plan.networkPod(p))
	}
}

// renamer is a Network that knows the names of pods: *named.Networks.
type renamer interface {
	Rename(ctx context.Context, pod netns.Pod)
}

// Reconcile restores the network of the live pod sandboxes after a restart of the
// server, and frees everything of the network that belongs to none of them.
func (b *Builder) Reconcile(ctx context.Context, live []state.Pod) error {
	var errs []error
	var pods []netns.Pod
	for _, p := range live {
		if !p.Allocated.NetworkAsked {
			continue
		}
		plan, err := NewPlan(p.ID, p.Config.V, b.Host)
		if err != nil {
			errs = append(errs, fmt.Errorf("read the configuration of pod sandbox %s: %w", p.ID, err))
			continue
		}
		pods = append(pods, plan.networkPod(p))
	}
	return errors.Join(append(errs, b.Network.Reconcile(ctx, pods))...)
}

func (b *Builder) podDir(id string) string { return filepath.Join(b.Dir, id) }

// isNamespace reports whether path is a pinned namespace: a file of nsfs(5).
func isNamespace(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.NSFS_MAGIC
}
