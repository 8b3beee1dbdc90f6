package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// Delete kills what is left of the container and removes the runtime's state,
// the cgroup, the exit file and our and conmon's files in the bundle; the
// bundle too if it is empty then. The log stays. It may be repeated.
func (e *Executor) Delete(ctx context.Context, id string, c Container) error {
	if err := checkID(id); err != nil {
		return err
	}
	rt, err := e.handler(c.Handler)
	if err != nil {
		return err
	}
	return e.remove(ctx, rt, id, c)
}

// remove takes every step whatever the one before it came to.
func (e *Executor) remove(ctx context.Context, rt *runtime, id string, c Container) error {
	if c.Init.IsZero() { // it is not known to be complete
		rt.killHelpers(id, c)
	}
	errs := []error{
		c.kill(ctx),
		e.monitorOf(c).release(ctx, id, c),
		rt.forget(ctx, id, c),
		removeFile(e.exitFile(id)),
	}
	if c.Bundle != "" {
		for _, name := range bundleFiles {
			errs = append(errs, removeFile(filepath.Join(c.Bundle, name)))
		}
		_ = os.Remove(c.Bundle) // the caller's if it holds anything else
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove container %s: %w", id, err)
	}
	return nil
}

// killHelpers ends the conmon of an incomplete creation and the runtime below it,
// and helpers whose conmon has ended.
func (rt *runtime) killHelpers(id string, c Container) {
	if !c.Conmon.IsZero() {
		killTree(c.Conmon)
	}
	for _, h := range rt.helpers(readCommandLines()) {
		if h.container == id {
			killTree(h.ID)
		}
	}
}

// kill ends every process of the container and waits for init's end.
func (c Container) kill(ctx context.Context) error {
	if err := ignoreGone(c.Init.Signal(syscall.SIGKILL)); err != nil {
		return err
	}
	if err := c.Init.Wait(ctx); err != nil {
		return fmt.Errorf("wait for the container's init to end: %w", err)
	}
	if c.PIDNamespace == "own" {
		return nil // the kernel has ended the others together with init
	}
	for { // what forks while it is being killed is found the next time
		members, err := c.members()
		if err != nil || len(members) == 0 {
			return err
		}
		for _, m := range members {
			if err := ignoreGone(m.Signal(syscall.SIGKILL)); err != nil {
				return err
			}
		}
		// An exiting process leaves its namespace before it has ended.
		for _, m := range members {
			if err := m.Wait(ctx); err != nil {
				return fmt.Errorf("wait for the container's process %d to end: %w", m.PID, err)
			}
		}
	}
}

// release gives conmon time to write the exit file that Wait reads, then
// kills it.
func (m conmon) release(ctx context.Context, _ string, c Container) error {
	if !c.Init.IsZero() {
		grace, cancel := context.WithTimeout(ctx, conmonGrace)
		defer cancel()
		if c.Conmon.Wait(grace) == nil {
			return nil
		}
	}
	if err := ignoreGone(c.Conmon.Signal(syscall.SIGKILL)); err != nil {
		return err
	}
	return c.Conmon.Wait(ctx)
}

// forget removes the runtime's state of a container without processes. Where
// that is a directory and nothing else, it is removed without calling the
// runtime.
func (rt *runtime) forget(ctx context.Context, id string, c Container) error {
	dir := rt.stateDir(id)
	if _, err := os.Lstat(dir); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if rt.crun && !c.PlainDelete && !c.Init.IsZero() {
		if st, err := readCrunStatus(dir); err == nil && st.CgroupPath != nil && *st.CgroupPath == "" && st.PID == c.Init.PID {
			return os.RemoveAll(dir)
		}
	}
	return rt.call(ctx, "delete", "--force", id)
}

// crunStatus is the part of crun's status file that is used here.
type crunStatus struct {
	PID        int     `json:"pid"`
	StartTime  uint64  `json:"process-start-time"`
	CgroupPath *string `json:"cgroup-path"`
	Bundle     string  `json:"bundle"`
}

func readCrunStatus(dir string) (st crunStatus, err error) {
	b, err := os.ReadFile(filepath.Join(dir, "status"))
	if err != nil {
		return st, err
	}
	return st, json.Unmarshal(b, &st)
}

func removeFile(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
