package pod

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"golang.org/x/sync/errgroup"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/pod/container"
	"github.com/subpod/subpod/pkg/state"
)

// RunPodWith is RunPod and CreateContainer at once: the container's root file system
// and monitor are made while the pod sandbox's namespaces and network are. When
// either cannot be made neither is left.
func (m *Manager) RunPodWith(ctx context.Context, cfg *runtimeapi.PodSandboxConfig, handler string, ctr *runtimeapi.ContainerConfig) (podID, id string, err error) {
	if err := container.Validate(ctr); err != nil {
		return "", "", err
	}
	n, existing, err := m.claimPod(ctx, cfg, handler)
	if err != nil {
		return "", "", err
	}
	if existing != "" {
		id, err := m.CreateContainer(ctx, existing, ctr)
		return existing, id, err
	}
	c, err := m.build(ctx, n, ctr)
	if err != nil {
		m.removeLogs(n.Pod)
		return "", "", err
	}
	return n.ID, c.ID, nil
}

// buildWith builds the pod sandbox and prepares the container at the same time, then
// creates the container. It returns the container with an error, too, for
// undoContainer.
func (m *Manager) buildWith(ctx context.Context, n *newPod, ctr *runtimeapi.ContainerConfig) (*newContainer, error) {
	c, _, err := m.claimContainer(ctx, n.Pod, ctr)
	if err != nil {
		return nil, err
	}
	var prepared *container.Prepared
	both, each := errgroup.WithContext(ctx) // the error is the first one, which interrupts the other
	p := n.Pod                              // Build changes n.Pod meanwhile
	both.Go(func() error { return m.Sandboxes.Build(each, n.plan, &n.Pod) })
	both.Go(func() (err error) {
		prepared, err = m.prepareContainer(each, c, p)
		return err
	})
	if err := both.Wait(); err != nil {
		prepared.Abandon()
		return c, err
	}
	if err := n.ask(ctx, m.Plugins); err != nil {
		prepared.Abandon()
		return c, err
	}
	return c, m.Containers.Create(ctx, prepared, n.Pod, &c.Container)
}

// RemoveUnstarted removes the pod sandbox of a container unless that has ever been
// started. Idempotent.
func (m *Manager) RemoveUnstarted(ctx context.Context, podID, id string) error {
	if c, err := m.State.Container(id); err == nil && !c.Status.StartedAt.IsZero() {
		return nil
	}
	return m.removeWithLogs(ctx, podID)
}

// removeWithLogs removes a pod sandbox that a command has made, and its logs.
func (m *Manager) removeWithLogs(ctx context.Context, podID string) error {
	p, err := m.State.Pod(podID)
	if err != nil {
		return ignoreNotFound(err)
	}
	ctx, cancel := detached(ctx)
	defer cancel()
	if err := m.RemovePod(ctx, podID); err != nil {
		return err
	}
	m.removeLogs(p)
	return nil
}

// removeLogs removes the log directory of a pod that a command has made: it is in
// a directory of ours.
func (b *base) removeLogs(p state.Pod) {
	dir := p.Config.V.GetLogDirectory()
	if b.LogDir == "" || dir == "" || filepath.Dir(filepath.Clean(dir)) != filepath.Clean(b.LogDir) {
		return
	}
	if err := os.RemoveAll(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		b.Log.Warn("a log directory could not be removed", "path", dir, "error", err)
	}
}
