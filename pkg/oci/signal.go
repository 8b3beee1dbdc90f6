package oci

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"github.com/subpod/subpod/pkg/proc"
)

// Signal sends sig to the container's init through a pidfd, or with all to
// every process of the container. ErrNotRunning when there is none.
func (e *Executor) Signal(_ context.Context, id string, c Container, sig syscall.Signal, all bool) error {
	var err error
	if all {
		err = c.signalMembers(sig)
	} else {
		err = c.Init.Signal(sig)
	}
	if errors.Is(err, proc.ErrGone) {
		return fmt.Errorf("container %s: %w", id, ErrNotRunning)
	}
	return err
}

// signalMembers signals every process of the container; proc.ErrGone when
// there is none.
func (c Container) signalMembers(sig syscall.Signal) error {
	members, err := c.members()
	if err != nil {
		return err
	}
	sent := false
	for _, m := range members {
		err := m.Signal(sig)
		if errors.Is(err, proc.ErrGone) {
			continue
		}
		if err != nil {
			return err
		}
		sent = true
	}
	if !sent {
		return proc.ErrGone
	}
	return nil
}

func ignoreGone(err error) error {
	if errors.Is(err, proc.ErrGone) {
		return nil
	}
	return err
}
