package oci

import (
	"context"
	"errors"
	"fmt"

	"github.com/subpod/subpod/pkg/monitor/wire"
	"github.com/subpod/subpod/pkg/stdio"
)

// errMonitorEnded is returned to clients whose connection has ended before the container.
var errMonitorEnded = errors.New("the container monitor was started again; the container runs on, attach to it anew")

func (m nodeMonitor) attach(ctx context.Context, id string, c Container, s stdio.Streams) error {
	if !c.Init.Alive() {
		return fmt.Errorf("attach to container %s: %w", id, ErrNotRunning)
	}
	conn, err := m.dial()
	if err != nil {
		return fmt.Errorf("attach to container %s: %w", id, err)
	}
	defer conn.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	reply, err := m.exchange(conn, wire.Request{Op: wire.OpAttach, ID: id, Stdin: s.Stdin != nil && c.Stdin, Paced: s.Paced}, nil)
	switch {
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case err == nil && (reply.Unknown || reply.Error != "" && !c.Init.Alive()):
		return fmt.Errorf("attach to container %s: %w", id, ErrNotRunning)
	case err == nil && reply.Error != "":
		err = errors.New(reply.Error)
	}
	if err != nil {
		return fmt.Errorf("attach to container %s: %w", id, err)
	}
	err = relay(ctx, m.e.log, conn, c, s, func(ctx context.Context, size stdio.TerminalSize) error {
		_, err := m.ask(ctx, wire.Request{Op: wire.OpResize, ID: id, Rows: size.Height, Cols: size.Width})
		return err
	})
	if err == nil && c.Init.Alive() {
		return errMonitorEnded
	}
	return err
}
