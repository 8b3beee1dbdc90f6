package monitor

import (
	"errors"
	"fmt"
	"net"
	"sync"

	"github.com/subpod/subpod/pkg/monitor/wire"
	"github.com/subpod/subpod/pkg/proc"
)

// keeperConn is the connection to the keeper.
type keeperConn struct {
	conn    *net.UnixConn
	mu      sync.Mutex // one question at a time
	answers chan wire.Keep
}

func newKeeperConn(conn *net.UnixConn) *keeperConn {
	return &keeperConn{conn: conn, answers: make(chan wire.Keep, 1)}
}

// takeOver receives what is kept, before serve.
func (k *keeperConn) takeOver(each func(wire.Keep, []int) error) error {
	for {
		var m wire.Keep
		fds, err := wire.Receive(k.conn, &m)
		if err != nil {
			return fmt.Errorf("receive what is kept: %w", err)
		}
		if m.Op == wire.KeepReady {
			return nil
		}
		if err := each(m, fds); err != nil {
			return err
		}
	}
}

// serve receives answers and exit statuses until the keeper ends.
func (k *keeperConn) serve(exited func(id string, init proc.ID, x wire.Exit)) error {
	for {
		var m wire.Keep
		fds, err := wire.Receive(k.conn, &m)
		wire.CloseAll(fds)
		switch {
		case err != nil:
			return fmt.Errorf("the connection to the node's first process: %w", err)
		case m.Op == wire.KeepExit && m.Exit != nil:
			exited(m.ID, m.Init, *m.Exit)
		default:
			k.answers <- m
		}
	}
}

// ask returns once the keeper has done it.
func (k *keeperConn) ask(m wire.Keep, fds []int) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	m.V = wire.Version
	if err := wire.Send(k.conn, m, fds...); err != nil {
		return err
	}
	switch answer := <-k.answers; {
	case answer.Op == wire.KeepGone:
		return errGone
	case answer.Op != wire.KeepOK || answer.ID != m.ID:
		return errors.New("the node's first process has not understood")
	}
	return nil
}

func (k *keeperConn) hold(m wire.Keep, fds []int) error {
	m.Op = wire.KeepHold
	return k.ask(m, fds)
}

func (k *keeperConn) drop(id string) error { return k.ask(wire.Keep{Op: wire.KeepDrop, ID: id}, nil) }
