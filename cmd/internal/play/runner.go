package play

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/cmd/internal/kube"
	"github.com/subpod/subpod/cmd/internal/logs"
	"github.com/subpod/subpod/pkg/api"
	"github.com/subpod/subpod/pkg/client"
)

// runner runs one pod.
type runner struct {
	Options
	set     *kube.Set
	pod     *kube.Pod
	logLock *sync.Mutex
	// usersLock prevents two pods of the set from choosing the same ID range.
	usersLock *sync.Mutex
	up        func()

	at      kube.Place
	id, ip  string
	sandbox *runtimeapi.PodSandboxConfig
	logging sync.WaitGroup
	waiting atomic.Int32 // containers that are not up yet
	isUp    atomic.Bool  // all were up, or have succeeded
}

const (
	always = "Always"
	never  = "Never"

	maxBackoff = 5 * time.Minute
	// A container that ran for this long is restarted after FirstBackoff again.
	steady = 10 * time.Minute
)

// run runs the pod: it creates the sandbox, runs the init containers one after the
// other, and then all containers until none of them is to be restarted.
func (r *runner) run(ctx context.Context) (err error) {
	name := r.pod.Metadata.Name
	defer r.logging.Wait()
	if d := r.pod.Spec.ActiveDeadlineSeconds; d != nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(*d)*time.Second)
		defer cancel()
	}
	if err := r.createSandbox(ctx); err != nil {
		return errors.Join(fmt.Errorf("pod %s: %w", name, err), r.remove(ctx))
	}
	r.Report("%s: created", name)
	sidecars, cancelSidecars := context.WithCancel(ctx)
	defer cancelSidecars()
	var beside sync.WaitGroup
	for i := range r.pod.Spec.InitContainers {
		c := &r.pod.Spec.InitContainers[i]
		if c.RestartPolicy == always {
			started := make(chan struct{})
			beside.Go(func() { _ = r.keep(sidecars, c, always, sync.OnceFunc(func() { close(started) })) })
			select {
			case <-started:
			case <-ctx.Done():
			}
			continue
		}
		policy := "OnFailure"
		if r.pod.Spec.RestartPolicy == never {
			policy = never
		}
		if err = r.keep(ctx, c, policy, func() {}); err != nil {
			break
		}
	}
	if err == nil {
		err = r.runContainers(ctx)
	}
	cancelSidecars()
	beside.Wait()
	if ctx.Err() == context.DeadlineExceeded {
		err = errors.Join(err, fmt.Errorf("%w: pod %s has exceeded its activeDeadlineSeconds", ErrFailed, name))
	} else if ctx.Err() != nil {
		return ctx.Err()
	}
	if errors.Is(err, errGone) {
		r.Report("%s: stopped", name)
		return nil
	}
	r.stop(ctx)
	if err == nil {
		r.Report("%s: succeeded", name)
	} else {
		r.Report("%s: failed: %v", name, err)
	}
	return err
}

// stopTimeout bounds the stop of a completed pod.
const stopTimeout = time.Minute

// stop stops a completed pod; its record and logs are kept.
func (r *runner) stop(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
	defer cancel()
	err := stopContainers(ctx, r.pod, r.id, r.Options)
	if err == nil {
		_, err = r.Client.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: r.id})
	}
	if err != nil {
		r.Report("%s: stop failed: %v", r.pod.Metadata.Name, err)
	}
}

// remove removes the pod if this runner has created it, whether or not the answer
// arrived, and its files. Idempotent.
func (r *runner) remove(ctx context.Context) error {
	if r.at.UID == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	there, err := find(ctx, r.Client, r.pod)
	switch {
	case err != nil:
		return err
	case there != nil && client.RunID(there) == r.at.UID:
		return removePod(ctx, r.pod, there, r.Options)
	}
	return r.removeFiles(ctx, r.at)
}

func (r *runner) createSandbox(ctx context.Context) error {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	r.at = r.place(r.pod, hex.EncodeToString(b[:]))
	if err := os.MkdirAll(r.at.Logs, 0o700); err != nil {
		return err
	}
	if err := r.pod.Prepare(r.set, r.at); err != nil {
		return err
	}
	if r.pod.OwnUsers() {
		r.usersLock.Lock() // until the daemon has recorded the range
		defer r.usersLock.Unlock()
		var err error
		if r.at.Users, err = freeUsers(ctx, r.Client); err != nil {
			return err
		}
	}
	r.sandbox = r.pod.Sandbox(r.at)
	resp, err := r.Client.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: r.sandbox, RuntimeHandler: r.pod.Spec.RuntimeClassName})
	if client.HasReason(err, api.ReasonNameTaken) {
		return exists(r.pod.Metadata.Name)
	}
	if err != nil {
		return err
	}
	r.id = resp.PodSandboxId
	r.at.Tmpfs = filepath.Join(r.RunDir, "pods", r.id, api.MemoryVolumes)
	st, err := r.Client.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: r.id})
	if err != nil {
		return err
	}
	r.ip = st.Status.GetNetwork().GetIp()
	return nil
}

func (r *runner) runContainers(ctx context.Context) error {
	list := r.pod.Spec.Containers
	r.waiting.Store(int32(len(list)))
	var all sync.WaitGroup
	errs := make([]error, len(list))
	for i := range list {
		up := sync.OnceFunc(func() {
			if r.waiting.Add(-1) == 0 {
				r.isUp.Store(true)
				r.up()
			}
		})
		all.Go(func() {
			if errs[i] = r.keep(ctx, &list[i], r.pod.Spec.RestartPolicy, up); errs[i] == nil {
				up()
			}
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

// keep runs a container and restarts it according to the restart policy. It returns
// nil when the container has succeeded and is not to be restarted. started is called
// once it is up.
func (r *runner) keep(ctx context.Context, c *kube.Container, policy string, started func()) error {
	title := r.title(c)
	backoff := r.FirstBackoff
	for attempt := uint32(0); ; attempt++ {
		began := time.Now()
		code, err := r.once(ctx, c, attempt, started)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if r.gone(ctx) {
			return errGone
		}
		var what string
		switch {
		case err != nil:
			what = err.Error()
			if policy == never || errors.Is(err, kube.ErrManifest) {
				return fmt.Errorf("%w: %s: %w", ErrFailed, title, err)
			}
		case policy == never && code != 0:
			return fmt.Errorf("%w: %s exited with code %d", ErrFailed, title, code)
		case policy == never, policy == "OnFailure" && code == 0:
			r.Report("%s: completed", title)
			return nil
		default:
			what = fmt.Sprintf("exited with code %d", code)
		}
		if time.Since(began) > steady {
			backoff = r.FirstBackoff
		}
		r.Report("%s: %s; restarting in %v", title, what, backoff)
		select {
		case <-time.After(backoff):
		case <-ctx.Done():
			return ctx.Err()
		}
		backoff = min(2*backoff, maxBackoff)
	}
}

// errGone reports that the pod was stopped or removed from outside.
var errGone = errors.New("the pod was stopped")

// gone reports whether the pod sandbox is no longer ready.
func (r *runner) gone(ctx context.Context) bool {
	st, err := r.Client.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: r.id})
	return err != nil || st.Status.State != runtimeapi.PodSandboxState_SANDBOX_READY
}

func (r *runner) title(c *kube.Container) string { return r.pod.Metadata.Name + "/" + c.Name }

// once runs a container until it exits and returns its exit code.
func (r *runner) once(ctx context.Context, c *kube.Container, attempt uint32, started func()) (int32, error) {
	if err := r.image(ctx, c); err != nil {
		return 0, err
	}
	config, err := r.pod.Container(c, r.set, r.at, attempt, r.ip)
	if err != nil {
		return 0, err
	}
	req := &runtimeapi.CreateContainerRequest{PodSandboxId: r.id, Config: config, SandboxConfig: r.sandbox}
	made, err := r.Client.CreateContainer(ctx, req)
	if err != nil {
		return 0, err
	}
	id := made.ContainerId
	if attempt > 0 {
		r.removeBefore(ctx, c, id)
	}
	if _, err := r.Client.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: id}); err != nil {
		return 0, err
	}
	r.Report("%s: started", r.title(c))
	ended, cancel := context.WithCancel(ctx)
	defer cancel()
	r.follow(ended, c, id, filepath.Join(r.at.Logs, config.LogPath))
	w := &watcher{runner: r, container: c, id: id}
	var probes sync.WaitGroup
	probes.Go(func() { w.watch(ended, started) })
	exit, err := r.wait(ctx, id)
	cancel()
	probes.Wait()
	if err != nil {
		return 0, err
	}
	return exit.ExitCode, nil
}

const (
	// serverTimeout bounds how long a server may be unavailable, as during a restart.
	serverTimeout = time.Minute
	// waitRetryInterval is the delay before a failed Wait is repeated.
	waitRetryInterval = 500 * time.Millisecond
)

// wait waits until a container exits, also across a restart of the server.
func (r *runner) wait(ctx context.Context, id string) (*api.WaitResponse, error) {
	var lost time.Time
	for {
		began := time.Now()
		exit, err := r.Client.Wait(ctx, id)
		if err == nil || client.IsNotFound(err) || ctx.Err() != nil {
			return exit, err
		}
		if lost.IsZero() || time.Since(began) > time.Second {
			lost = time.Now()
		}
		if time.Since(lost) > serverTimeout {
			return nil, err
		}
		select {
		case <-time.After(waitRetryInterval):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// removeBefore removes the earlier attempts of a container; their logs are kept.
func (r *runner) removeBefore(ctx context.Context, c *kube.Container, keep string) {
	resp, err := r.Client.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{PodSandboxId: r.id}})
	if err != nil {
		return
	}
	for _, x := range resp.Containers {
		if x.Metadata.GetName() == c.Name && x.Id != keep {
			_, _ = r.Client.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: x.Id})
		}
	}
}

// image pulls the image according to the pull policy and enforces runAsNonRoot.
func (r *runner) image(ctx context.Context, c *kube.Container) error {
	status := func() (*runtimeapi.Image, error) {
		st, err := r.Client.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: c.Image}})
		return st.GetImage(), err
	}
	image, err := status()
	if err != nil {
		return err
	}
	switch {
	case c.ImagePullPolicy == never && image == nil:
		return fmt.Errorf("image %s is not present and imagePullPolicy is Never; pull it (subpod pull %s)", c.Image, c.Image)
	case c.ImagePullPolicy == always, image == nil:
		if err := r.Pull(ctx, c.Image); err != nil {
			return err
		}
		if image, err = status(); err != nil {
			return err
		}
	}
	must, known := r.pod.NonRoot(c)
	if !must || known {
		return nil
	}
	switch {
	case image.GetUsername() != "":
		return fmt.Errorf("%w: runAsNonRoot: image %s has the user name %q; set runAsUser to a UID", kube.ErrManifest, c.Image, image.Username)
	case image.GetUid().GetValue() == 0:
		return fmt.Errorf("%w: runAsNonRoot: image %s runs as root; set runAsUser", kube.ErrManifest, c.Image)
	}
	return nil
}

// follow copies the log of a container to Logs until ctx ends.
func (r *runner) follow(ctx context.Context, c *kube.Container, id, path string) {
	if r.Logs == nil {
		return
	}
	w := &lockedWriter{lock: r.logLock, out: r.Logs}
	// It reads the rest of the log after the container has exited.
	r.logging.Go(func() {
		err := logs.Read(context.WithoutCancel(ctx), path, logs.Options{
			Tail: -1, Follow: true, Prefix: "[" + r.title(c) + "] ",
			Ended: func() bool { return ctx.Err() != nil },
		}, w, w)
		if err != nil {
			r.Report("%s: log: %v", r.title(c), err)
		}
	})
}

// lockedWriter prevents the lines of several containers from being mixed.
type lockedWriter struct {
	lock *sync.Mutex
	out  io.Writer
}

// Write implements io.Writer.
func (w *lockedWriter) Write(p []byte) (int, error) {
	w.lock.Lock()
	defer w.lock.Unlock()
	return w.out.Write(p)
}
