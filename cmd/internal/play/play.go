// Package play hands the pods of a manifest to the server, which keeps them running
// (pkg/supervise), and follows them. What this process prepares are the files of volumes
// and the images.
package play

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/cmd/internal/kube"
	"github.com/subpod/subpod/pkg/api"
	"github.com/subpod/subpod/pkg/client"
)

// Options of a Player.
type Options struct {
	Client *client.Client
	// DataDir holds persistent files, RunDir those that end with the session.
	DataDir, RunDir string
	// Report prints a status message, one line.
	Report func(format string, args ...any)
	// Logs, if set, receives the logs of the containers, each line with the name of
	// its container.
	Logs io.Writer
	// Remove removes a directory that containers have written to: it may contain
	// files of subordinate IDs.
	Remove func(ctx context.Context, dir string) error
	// Pull pulls an image.
	Pull func(ctx context.Context, ref string) error
	// Detach makes Play return once the pods are up, or have ended.
	Detach bool
}

// ErrExists reports that a pod with that name exists.
var ErrExists = errors.New("pod exists")

// ErrFailed reports that a pod has failed: a container exited with an error and
// its restart policy does not restart it.
var ErrFailed = errors.New("pod failed")

// Play runs the pods of the set until all have completed. A set is run as a whole or not at
// all: when a pod of it cannot be made, or ctx ends, Play stops and removes the pods that it
// has created. When this process is killed they go on. ErrExists, ErrFailed.
func Play(ctx context.Context, set *kube.Set, o Options) error {
	o.sweep(ctx)
	for _, p := range set.Pods {
		if there, err := find(ctx, o.Client, p); err != nil {
			return err
		} else if there != nil {
			return exists(client.PodName(there))
		}
	}
	if err := o.images(ctx, set); ctx.Err() != nil {
		return nil
	} else if err != nil {
		return err
	}
	made, err := o.makeVolumes(set)
	if err != nil {
		return errors.Join(err, removeEmpty(made))
	}
	var all sync.WaitGroup
	running, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	runners := newRunners(set, o)
	errs := make([]error, len(runners))
	for i, r := range runners {
		all.Go(func() {
			defer close(r.ended)
			if errs[i] = r.run(running); errors.Is(errs[i], errNotMade) {
				cancel(errs[i])
			}
		})
	}
	all.Wait()
	switch {
	case ctx.Err() != nil:
		return removeOwn(ctx, runners)
	case running.Err() != nil:
		return errors.Join(context.Cause(running), removeOwn(ctx, runners), o.removeUnused(ctx, set, made))
	}
	return errors.Join(errs...)
}

// newRunners returns a runner for each pod, which knows those that it waits for.
func newRunners(set *kube.Set, o Options) []*runner {
	var logs sync.Mutex
	runners := make([]*runner, len(set.Pods))
	byPod := map[*kube.Pod]*runner{}
	queues := map[*kube.Queue]*queue{}
	for i, p := range set.Pods {
		r := &runner{
			Options: o, set: set, pod: p, logLock: &logs,
			up: make(chan struct{}), ended: make(chan struct{}), after: byPod[p.Part.After],
		}
		runners[i], byPod[p] = r, r
		q := p.Part.Queue
		if q == nil || q.Parallel >= q.Pods {
			continue
		}
		if queues[q] == nil {
			queues[q] = &queue{slots: make(chan struct{}, q.Parallel)}
			queues[q].waiting.Store(int32(q.Pods))
		}
		r.queue = queues[q]
	}
	return runners
}

// makeVolumes creates the named volumes of the set that are not there, and returns their
// directories.
func (o Options) makeVolumes(set *kube.Set) (made []string, err error) {
	volumes := filepath.Join(o.DataDir, "volumes")
	for _, name := range set.ClaimNames() {
		isNew, err := kube.MakeVolume(volumes, name)
		if err != nil {
			return made, fmt.Errorf("volume %s: %w", name, err)
		}
		if isNew {
			made = append(made, filepath.Join(volumes, name))
		}
	}
	return made, nil
}

// removeUnused removes volumes in which nothing was written, unless another client has
// pods of the set, whose volumes they are then.
func (o Options) removeUnused(ctx context.Context, set *kube.Set, volumes []string) error {
	if len(volumes) == 0 {
		return nil
	}
	pods, err := played(ctx, o.Client)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(pods, func(p *runtimeapi.PodSandbox) bool { return podOf(set, p) != nil }) {
		return nil
	}
	return removeEmpty(volumes)
}

// removeEmpty removes the directories in which nothing was written.
func removeEmpty(dirs []string) error {
	var errs []error
	for _, dir := range dirs {
		if err := os.Remove(dir); err != nil && !errors.Is(err, unix.ENOTEMPTY) && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func exists(name string) error {
	return fmt.Errorf("%w: %s; remove it (--down) or replace it (--replace)", ErrExists, name)
}

// cleanupTimeout bounds the removal of pods after Play was interrupted, and before it the
// wait for those that are being made.
const cleanupTimeout = 2 * time.Minute

// removeOwn removes the pods that these runners have created, and no others of
// the same names.
func removeOwn(ctx context.Context, runners []*runner) error {
	var all sync.WaitGroup
	errs := make([]error, len(runners))
	for i, r := range runners {
		all.Go(func() { errs[i] = r.remove(ctx) })
	}
	all.Wait()
	return errors.Join(errs...)
}

// Down stops and removes the pods of the set with their files, except named volumes, also
// replicas of its workloads that the set no longer has, up to all of them. Idempotent.
func Down(ctx context.Context, set *kube.Set, o Options) error {
	o.sweep(ctx)
	pods, err := played(ctx, o.Client)
	if err != nil {
		return err
	}
	var all sync.WaitGroup
	errs := make([]error, len(pods))
	for i, there := range pods {
		if p := podOf(set, there); p != nil {
			all.Go(func() { errs[i] = removePod(ctx, p, there, o) })
		}
	}
	all.Wait()
	return errors.Join(errs...)
}

// podOf returns the pod of the set that a pod sandbox is of, or the like of it of the same
// workload, nil for none.
func podOf(set *kube.Set, there *runtimeapi.PodSandbox) *kube.Pod {
	var like *kube.Pod
	for _, p := range slices.Concat(set.Pods, set.None) {
		if p.Metadata.Namespace != there.Metadata.GetNamespace() {
			continue
		}
		if p.Metadata.Name == there.Metadata.GetName() {
			return p
		}
		if w := p.Part.Workload; w != "" && w == there.Labels[api.LabelWorkload] {
			like = p
		}
	}
	if like == nil {
		return nil
	}
	other := *like
	other.Metadata.Name = there.Metadata.GetName()
	return &other
}

// removePod stops and removes a pod with its files.
func removePod(ctx context.Context, p *kube.Pod, there *runtimeapi.PodSandbox, o Options) error {
	if err := stopContainers(ctx, p, there.Id, o); err != nil {
		return err
	}
	if _, err := o.Client.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: there.Id}); err != nil {
		return err
	}
	if _, err := o.Client.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: there.Id}); err != nil {
		return err
	}
	o.Report("%s: removed", p.Metadata.Name)
	return o.removeFiles(ctx, o.place(p, client.RunID(there)))
}

// removeFiles removes the files of a pod, except named volumes.
func (o Options) removeFiles(ctx context.Context, at kube.Place) error {
	// Older versions had the files of secrets in the run directory.
	old := filepath.Join(o.RunDir, "play", filepath.Base(at.Disk))
	return errors.Join(os.RemoveAll(at.Logs), o.Remove(ctx, at.Disk), o.Remove(ctx, old))
}

// stopContainers stops the mains of a pod at the same time, then its sidecars in the reverse
// order of their start, all within one grace period, as a kubelet does.
func stopContainers(ctx context.Context, p *kube.Pod, podID string, o Options) error {
	resp, err := o.Client.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{PodSandboxId: podID}})
	if err != nil {
		return err
	}
	order := map[string]int{} // of sidecars; that of mains is 0
	for i, c := range p.Spec.InitContainers {
		order[c.Name] = len(p.Spec.InitContainers) - i
	}
	turns := make([][]*runtimeapi.Container, len(p.Spec.InitContainers)+1)
	for _, c := range resp.Containers {
		if c.State == runtimeapi.ContainerState_CONTAINER_RUNNING {
			turn := order[c.Metadata.GetName()]
			turns[turn] = append(turns[turn], c)
		}
	}
	until := time.Now().Add(time.Duration(p.Grace()) * time.Second)
	for i, turn := range turns {
		if least := time.Now().Add(leastGrace); i > 0 && p.Grace() > 0 && until.Before(least) {
			until = least
		}
		if err := stopTurn(ctx, p, turn, until, o); err != nil {
			return err
		}
	}
	return nil
}

// stopTurn stops containers at the same time.
func stopTurn(ctx context.Context, p *kube.Pod, turn []*runtimeapi.Container, until time.Time, o Options) error {
	var all sync.WaitGroup
	errs := make([]error, len(turn))
	for i, c := range turn {
		all.Go(func() {
			grace := preStop(ctx, p, c, until, o)
			_, errs[i] = o.Client.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: c.Id, Timeout: int64(math.Round(grace.Seconds()))})
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

// leastGrace is what is left of the grace period of a container at least after its hook, as
// a kubelet has it.
const leastGrace = 2 * time.Second

// preStop runs the preStop hook of a container within the grace period, which ends at a
// time, and returns what is left of that.
func preStop(ctx context.Context, p *kube.Pod, c *runtimeapi.Container, until time.Time, o Options) time.Duration {
	h := p.PreStop(c.Metadata.GetName())
	if h == nil || p.Grace() == 0 {
		return max(time.Until(until), 0)
	}
	bounded, cancel := context.WithDeadline(ctx, until)
	defer cancel()
	if err := hook(bounded, o.Client, c.Id, h); err != nil {
		o.Report("%s/%s: preStop: %v", p.Metadata.Name, c.Metadata.GetName(), err)
	}
	return max(time.Until(until), leastGrace)
}

// hook runs a lifecycle hook.
func hook(ctx context.Context, c *client.Client, id string, h *kube.Hook) error {
	if h.Sleep != nil {
		select {
		case <-time.After(time.Duration(h.Sleep.Seconds) * time.Second):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if h.HTTPGet != nil {
		return client.PreStop(ctx, c, id) // the server reaches the pod's network
	}
	if h.Exec == nil {
		return nil
	}
	resp, err := c.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: h.Exec.Command})
	if err == nil && resp.ExitCode != 0 {
		err = fmt.Errorf("exit code %d", resp.ExitCode)
	}
	return err
}

// find returns the pod sandbox of a pod, nil if there is none.
func find(ctx context.Context, c *client.Client, p *kube.Pod) (*runtimeapi.PodSandbox, error) {
	pods, err := played(ctx, c)
	if err != nil {
		return nil, err
	}
	for _, there := range pods {
		if there.Metadata.GetName() == p.Metadata.Name && there.Metadata.GetNamespace() == p.Metadata.Namespace {
			return there, nil
		}
	}
	return nil, nil
}

// played returns the pod sandboxes of play.
func played(ctx context.Context, c *client.Client) ([]*runtimeapi.PodSandbox, error) {
	resp, err := c.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{
		LabelSelector: map[string]string{api.LabelMadeBy: api.MadeByPlay},
	}})
	return resp.GetItems(), err
}

// place returns the directories of a pod.
func (o Options) place(p *kube.Pod, uid string) kube.Place {
	own := p.Metadata.Name + "-" + uid
	return kube.Place{
		UID:     uid,
		Logs:    filepath.Join(o.DataDir, "logs", own),
		Volumes: filepath.Join(o.DataDir, "volumes"),
		Disk:    filepath.Join(o.DataDir, "play", own),
		Memory:  filepath.Join(o.DataDir, "play", own, "files"),
		Seccomp: filepath.Join(o.DataDir, "seccomp"),
	}
}
