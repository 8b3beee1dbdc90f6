package oci

import (
	"context"

	"github.com/subpod/subpod/pkg/stdio"
)

// monitor holds the streams, the log and the exit status of containers while no server
// runs. Each container has the one that it was created with.
type monitor interface {
	// launch begins a creation: a process that waits until it is to call the runtime.
	launch(p *Pending) (launch, error)
	// exit returns the exit status; ok is false while it is not known.
	exit(id string, c Container) (x Exit, ok bool, err error)
	// settled delivers when exit knows the status, or never will.
	settled(ctx context.Context, id string, c Container) <-chan error
	// giveUp is for a container that has ended and does not settle.
	giveUp(ctx context.Context, id string, c Container) error
	// release waits until a container that has ended has settled, for a while, and
	// forgets it.
	release(ctx context.Context, id string, c Container) error
	attach(ctx context.Context, id string, c Container, s stdio.Streams) error
	// reopen makes the container log to a new file at its log path, if that has another
	// one now.
	reopen(ctx context.Context, id string, c Container) error
}

// launch is the process of a creation that calls the runtime.
type launch interface {
	pid() int
	// invoke lets it call the runtime, and waits until the container exists. It sets what
	// becomes known of c, also when it returns an error.
	invoke(ctx context.Context, c *Container) error
	// close ends the process unless it was asked to call the runtime, and closes all files.
	close()
}

// monitorOf returns the monitor of a container.
func (e *Executor) monitorOf(c Container) monitor {
	if c.Monitor == MonitorNode {
		return nodeMonitor{e}
	}
	return conmon{e}
}

// nextMonitor returns the monitor of containers that are created from now on.
func (e *Executor) nextMonitor() monitor {
	if e.ownMonitor {
		return nodeMonitor{e}
	}
	return conmon{e}
}

// conmon is a process for each container (conmon(8)).
type conmon struct{ e *Executor }
