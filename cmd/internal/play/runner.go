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

	// after has to be up before this one is handed over, nil for none; queue, if set, has
	// room for the pods of a Job that run at the same time.
	after *runner
	queue *queue
	// up is closed once the pod is up or has succeeded, ended when run returns.
	up, ended chan struct{}
	isUp      sync.Once

	at      kube.Place
	id      string
	logging sync.WaitGroup
}

// errNotMade reports that a pod could not be handed over to the server.
var errNotMade = errors.New("not made")

// notMade is an error that is errNotMade too, with its own message.
type notMade struct{ error }

// Unwrap makes the error be errNotMade and what it is.
func (e notMade) Unwrap() []error { return []error{errNotMade, e.error} }

// await waits until the pod may start.
func (r *runner) await(ctx context.Context) error {
	if r.after != nil {
		select {
		case <-r.after.up:
		case <-r.after.ended:
			select {
			case <-r.after.up:
			default:
				return fmt.Errorf("%w: pod %s was not started, since %s is not up", ErrFailed, r.pod.Metadata.Name, r.after.pod.Metadata.Name)
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if r.queue == nil {
		return nil
	}
	return r.queue.enter(ctx, r.pod.Metadata.Name)
}

// run hands the pod over and follows it until it has ended; with Detach, until it is up.
func (r *runner) run(ctx context.Context) error {
	if err := r.await(ctx); err != nil {
		return err
	}
	if r.queue != nil {
		defer r.queue.leave()
	}
	if err := r.handOver(ctx); err != nil {
		return notMade{errors.Join(fmt.Errorf("pod %s: %w", r.pod.Metadata.Name, err), r.remove(ctx))}
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
		if r.queue != nil {
			r.queue.failed.Store(true)
		}
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
			if e.Up || e.Final && !e.Failed && !e.Stopped {
				r.isUp.Do(func() { close(r.up) })
			}
			// What waits for its turn needs this one's end.
			if e.Up && r.Detach && (r.queue == nil || r.queue.waiting.Load() == 0) {
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
	release, err := claimPlace(r.at)
	if err != nil {
		return err
	}
	defer release()
	if err := os.MkdirAll(r.at.Logs, 0o700); err != nil {
		return err
	}
	if err := r.pod.Prepare(r.set, r.at); err != nil {
		return err
	}
	spec, configs, err := r.pod.Workload(r.set, r.at)
	if err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	// Only the answer tells whether the pod is there: the server goes on with what it has
	// begun.
	ctx, cancel := lasting(ctx)
	defer cancel()
	r.id, err = client.Play(ctx, r.Client, r.pod.Sandbox(r.at), r.pod.Spec.RuntimeClassName, spec, configs)
	if client.HasReason(err, api.ReasonNameTaken) {
		return exists(r.pod.Metadata.Name)
	}
	return err
}

// lasting returns a context that ends cleanupTimeout after ctx.
func lasting(ctx context.Context) (context.Context, context.CancelFunc) {
	out, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		select {
		case <-time.After(cleanupTimeout):
			cancel()
		case <-out.Done():
		}
	})
	return out, func() { stop(); cancel() }
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
