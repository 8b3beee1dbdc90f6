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
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/cmd/internal/kube"
	"github.com/subpod/subpod/cmd/internal/logs"
	"github.com/subpod/subpod/pkg/api"
	"github.com/subpod/subpod/pkg/client"
)

// runner hands one pod to the server and follows it.
type runner struct {
	Options
	set     *kube.Set
	pod     *kube.Pod
	logLock *sync.Mutex
	// usersLock prevents two pods of the set from choosing the same ID range.
	usersLock *sync.Mutex

	at      kube.Place
	id      string
	logging sync.WaitGroup
}

// run hands the pod over and follows it until it has ended; with Detach, until it is up.
func (r *runner) run(ctx context.Context) error {
	if err := r.handOver(ctx); err != nil {
		return errors.Join(fmt.Errorf("pod %s: %w", r.pod.Metadata.Name, err), r.remove(ctx))
	}
	r.Report("%s: created", r.pod.Metadata.Name)
	ended, cancel := context.WithCancel(ctx)
	defer r.logging.Wait()
	defer cancel()
	r.followLogs(ended)
	last, err := r.follow(ctx)
	switch {
	case err != nil:
		return err
	case last.Failed:
		return fmt.Errorf("%w: %s/%s", ErrFailed, r.pod.Metadata.Name, last.Reason)
	}
	return nil
}

// errUp ends following once the pod is up.
var errUp = errors.New("up")

const (
	// serverTimeout bounds how long a server may be unavailable, as during a restart.
	serverTimeout = time.Minute
	// followRetryInterval is the delay before a failed Follow is repeated.
	followRetryInterval = 500 * time.Millisecond
)

// follow reports what happens to the pod, also across a restart of the server, and returns
// its last event.
func (r *runner) follow(ctx context.Context) (last api.FollowEvent, err error) {
	lost := time.Now()
	for {
		err = client.Follow(ctx, r.Client, r.id, func(e *api.FollowEvent) error {
			lost, last = time.Now(), *e
			if e.Text != "" {
				r.Report("%s", e.Text)
			}
			if e.Up && r.Detach {
				return errUp
			}
			return nil
		})
		switch {
		case last.Final, errors.Is(err, errUp):
			return last, nil
		case ctx.Err() != nil:
			return last, ctx.Err()
		case client.IsNotFound(err):
			r.Report("%s: removed", r.pod.Metadata.Name)
			return api.FollowEvent{Final: true, Stopped: true}, nil
		case err != nil && time.Since(lost) > serverTimeout:
			return last, err
		}
		select {
		case <-time.After(followRetryInterval):
		case <-ctx.Done():
			return last, ctx.Err()
		}
	}
}

// handOver prepares files and images and gives the server the whole pod: from then on it
// runs without this process.
func (r *runner) handOver(ctx context.Context) error {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	r.at = r.place(r.pod, hex.EncodeToString(b[:]))
	if err := os.MkdirAll(r.at.Logs, 0o700); err != nil {
		return err
	}
	if err := r.pod.Prepare(r.set, r.at); err != nil {
		return err
	}
	for _, list := range [][]kube.Container{r.pod.Spec.InitContainers, r.pod.Spec.Containers} {
		for i := range list {
			if err := r.image(ctx, &list[i]); err != nil {
				return err
			}
		}
	}
	if r.pod.OwnUsers() {
		r.usersLock.Lock() // until the daemon has recorded the range
		defer r.usersLock.Unlock()
		var err error
		if r.at.Users, err = freeUsers(ctx, r.Client); err != nil {
			return err
		}
	}
	spec, configs, err := r.pod.Workload(r.set, r.at)
	if err != nil {
		return err
	}
	r.id, err = client.Play(ctx, r.Client, r.pod.Sandbox(r.at), r.pod.Spec.RuntimeClassName, spec, configs)
	if client.HasReason(err, api.ReasonNameTaken) {
		return exists(r.pod.Metadata.Name)
	}
	return err
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

func (r *runner) title(c *kube.Container) string { return r.pod.Metadata.Name + "/" + c.Name }

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
	case c.ImagePullPolicy == "Never" && image == nil:
		return fmt.Errorf("image %s is not present and imagePullPolicy is Never; pull it (subpod pull %s)", c.Image, c.Image)
	case c.ImagePullPolicy == "Always", image == nil:
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

// logPoll is the time between looks for the log of a container that has not started yet.
const logPoll = 100 * time.Millisecond

// followLogs copies the logs of the containers to Logs until ctx ends, and what is left
// in them then.
func (r *runner) followLogs(ctx context.Context) {
	if r.Logs == nil || r.Detach {
		return
	}
	w := &lockedWriter{lock: r.logLock, out: r.Logs}
	for _, list := range [][]kube.Container{r.pod.Spec.InitContainers, r.pod.Spec.Containers} {
		for i := range list {
			c := &list[i]
			r.logging.Go(func() {
				path := filepath.Join(r.at.Logs, c.Name, "0.log")
				for _, err := os.Stat(path); err != nil && ctx.Err() == nil; _, err = os.Stat(path) {
					select {
					case <-time.After(logPoll):
					case <-ctx.Done():
					}
				}
				err := logs.Read(context.WithoutCancel(ctx), path, logs.Options{
					Tail: -1, Follow: true, Prefix: "[" + r.title(c) + "] ",
					Ended: func() bool { return ctx.Err() != nil },
				}, w, w)
				if err != nil && !errors.Is(err, os.ErrNotExist) {
					r.Report("%s: log: %v", r.title(c), err)
				}
			})
		}
	}
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
