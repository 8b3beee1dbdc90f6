package pod

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/pkg/api"
	"github.com/subpod/subpod/pkg/quantity"
	"github.com/subpod/subpod/pkg/state"
)

// attendant does for containers what they ask for while they run.
type attendant struct{ *Manager }

// attend does what a container asks for while it runs, until ended is closed: it checks
// its health, and keeps its log within its bound.
func (m attendant) attend(c state.Container, ended <-chan struct{}) {
	o, err := api.Options(c.Config.V.GetAnnotations())
	if err != nil || o.Health == nil && o.LogMax <= 0 {
		return
	}
	m.running.Go(func() {
		ctx, cancel := context.WithCancel(m.ctx)
		defer cancel()
		var tasks sync.WaitGroup
		if o.Health != nil && m.Health != nil {
			tasks.Go(func() {
				m.Health.Follow(ctx, c.ID, *o.Health, func() time.Time { return m.startOf(c.ID) }, func() { m.unhealthy(c, o) })
			})
		}
		if o.LogMax > 0 && c.Allocated.LogPath != "" && m.ReopenLog != nil {
			tasks.Go(func() { m.boundLog(ctx, c, o.LogMax) })
		}
		select {
		case <-ended:
		case <-ctx.Done():
		}
		cancel()
		tasks.Wait()
	})
}

func (m attendant) startOf(id string) time.Time {
	c, err := m.State.Container(id)
	if err != nil {
		return time.Time{}
	}
	return c.Status.StartedAt
}

// unhealthy does with a container what its check asks for.
func (m attendant) unhealthy(c state.Container, o *api.ContainerOptions) {
	m.Log.Warn("a container is unhealthy", "container", c.ID, "action", o.Health.OnFailure)
	if c.Allocated.Runtime == nil {
		return
	}
	switch o.Health.OnFailure {
	case "kill":
		if err := m.Processes.Signal(m.ctx, c.ID, *c.Allocated.Runtime, unix.SIGKILL, false); err != nil && !errors.Is(err, syscall.ESRCH) {
			m.Log.Warn("an unhealthy container could not be killed", "container", c.ID, "error", err)
		}
	case "restart":
		if err := m.Restart(m.ctx, c.PodID, c.ID, stopTimeout(o)); err != nil {
			m.Log.Warn("an unhealthy container could not be restarted", "container", c.ID, "error", err)
		}
	case "stop":
		if err := m.StopContainer(m.ctx, c.ID, stopTimeout(o)); err != nil {
			m.Log.Warn("an unhealthy container could not be stopped", "container", c.ID, "error", err)
		}
	}
}

// stopTimeout is how long the container has to end.
func stopTimeout(o *api.ContainerOptions) time.Duration {
	if o.StopTimeout != nil {
		return quantity.Seconds(*o.StopTimeout)
	}
	return defaultStopTimeout
}

const (
	// defaultStopTimeout is how long an unhealthy container has to stop.
	defaultStopTimeout = 10 * time.Second
	// logInterval is how often the size of a log with a bound is looked at.
	logInterval = 2 * time.Second
)

// boundLog keeps a container's log within its bound: when half of it is full, that is
// kept beside a new file, and what was kept before goes.
func (m attendant) boundLog(ctx context.Context, c state.Container, bound int64) {
	path := c.Allocated.LogPath
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(logInterval):
		}
		st, err := os.Lstat(path)
		if err != nil || !st.Mode().IsRegular() || st.Size() < bound/2 {
			continue
		}
		err = os.Rename(path, path+api.OldLog)
		if err == nil {
			if err = m.ReopenLog(ctx, c.ID); err != nil {
				// It goes on in the file that it has, which keeps its name then.
				if _, statErr := os.Lstat(path); errors.Is(statErr, fs.ErrNotExist) {
					err = errors.Join(err, os.Rename(path+api.OldLog, path))
				}
			}
		}
		if err != nil && ctx.Err() == nil {
			m.Log.Warn("a log could not be kept within its bound", "container", c.ID, "path", path, "error", err)
		}
	}
}
