package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/subpod/subpod/pkg/proc"
)

// IDs returns the containers that any handler has state of.
func (e *Executor) IDs(context.Context) ([]string, error) {
	var ids []string
	for _, rt := range e.handlers {
		entries, err := os.ReadDir(rt.root)
		if err != nil {
			return nil, err
		}
		for _, d := range entries {
			if d.IsDir() && validID().MatchString(d.Name()) && !slices.Contains(ids, d.Name()) {
				ids = append(ids, d.Name())
			}
		}
	}
	return ids, nil
}

// Sweep removes what belongs to no live container: processes, conmons, runtime
// state, exit files and what interrupted execs left. It also ends the runtimes
// that an earlier server had called and waited for, but no command of an exec. It
// is meant for the server's start, before any request is served. It goes on after
// an error and returns all of them.
func (e *Executor) Sweep(ctx context.Context, live func(id string) bool) error {
	processes := readCommandLines()
	ids, err := removeOrphans(ctx, e, processes, live, true)
	errs := []error{err}
	if len(ids) > 0 {
		processes = readCommandLines()
	}
	e.endStopped(processes)
	for _, rt := range e.handlers {
		rt.killAbandoned(processes, e.log, live)
	}
	entries, err := os.ReadDir(e.exitDir)
	errs = append(errs, err)
	for _, d := range entries {
		if !live(d.Name()) {
			errs = append(errs, removeFile(filepath.Join(e.exitDir, d.Name())))
		}
	}
	entries, err = os.ReadDir(e.execDir)
	errs = append(errs, err)
	for _, d := range entries {
		errs = append(errs, os.RemoveAll(filepath.Join(e.execDir, d.Name())))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("sweep orphaned containers: %w", err)
	}
	return nil
}

// Orphans returns the IDs of containers that the runtimes or conmon processes know
// of and that are not live, and removes them if asked to. live is called after they
// were found: a container whose record is written before it is made is never taken
// for an orphan.
func (e *Executor) Orphans(ctx context.Context, live func(id string) bool, remove bool) (ids []string, err error) {
	return removeOrphans(ctx, e, readCommandLines(), live, remove)
}

func removeOrphans(ctx context.Context, e *Executor, processes commandLines, live func(id string) bool, remove bool) (ids []string, err error) {
	orphans, errs := e.orphans(ctx, processes, live)
	for id, c := range orphans {
		ids = append(ids, id)
		if !remove {
			continue
		}
		e.log.Info("removing orphaned container", "container", id, "handler", c.Handler)
		for _, rt := range e.handlers {
			if err := e.remove(ctx, rt, id, c); err != nil {
				errs = append(errs, err)
			}
		}
	}
	return ids, errors.Join(errs...)
}

// orphans reconstructs containers without a record from the runtimes' state and
// the conmons' command lines.
func (e *Executor) orphans(ctx context.Context, processes commandLines, live func(id string) bool) (map[string]Container, []error) {
	found := map[string]Container{}
	ids, err := e.IDs(ctx)
	errs := []error{err}
	for _, id := range ids {
		if !live(id) {
			found[id] = e.containerFromState(id)
		}
	}
	watched, err := nodeMonitor{e}.watched(ctx)
	errs = append(errs, err)
	for _, w := range watched {
		if live(w.ID) || !validID().MatchString(w.ID) {
			continue
		}
		c, ok := found[w.ID]
		if !ok {
			c = Container{PIDNamespace: "host", PlainDelete: true}
		}
		c.Monitor, c.Bundle = MonitorNode, w.Bundle
		found[w.ID] = c
	}
	for _, rt := range e.handlers {
		for _, h := range rt.helpers(processes) {
			if _, ok := found[h.container]; !ok && !live(h.container) {
				found[h.container] = Container{Handler: rt.name, PIDNamespace: "host", PlainDelete: true}
			}
		}
	}
	for pid, args := range processes.args {
		id, bundle, ok := e.ownConmon(pid, args)
		if !ok || live(id) {
			continue
		}
		c := found[id]
		c.Bundle = bundle
		c.Conmon = proc.ID{PID: pid, StartTime: processes.processTable[pid].StartTime}
		found[id] = c
	}
	return found, errs
}

func (e *Executor) containerFromState(id string) Container {
	for _, rt := range e.handlers {
		if c := rt.containerFromState(id); c.Handler != "" {
			return c
		}
	}
	return Container{PIDNamespace: "host", PlainDelete: true}
}

// containerFromState returns a container as the runtime's state has it; its
// Handler is "" when that is nothing.
func (rt *runtime) containerFromState(id string) Container {
	c := Container{PIDNamespace: "host", PlainDelete: true}
	dir := rt.stateDir(id)
	if st, err := readCrunStatus(dir); err == nil {
		c.Handler, c.Bundle, c.Init = rt.name, st.Bundle, proc.ID{PID: st.PID, StartTime: st.StartTime}
	} else if b, err := os.ReadFile(filepath.Join(dir, "state.json")); err == nil {
		var st struct {
			PID       int    `json:"init_process_pid"`
			StartTime uint64 `json:"init_process_start"`
		}
		if json.Unmarshal(b, &st) == nil {
			c.Handler, c.Init = rt.name, proc.ID{PID: st.PID, StartTime: st.StartTime}
		}
	}
	if c.Init.Alive() {
		c.MountNS, _ = mountNSOf(c.Init.PID)
	}
	return c
}

// ownConmon reports whether a process is a conmon of ours: one that writes its
// exit file into our directory. It is in our mount namespace, as no container's
// process is: one of those with a conmon's command line could have any files of the
// user removed as its bundle's.
func (e *Executor) ownConmon(pid int, args []string) (id, bundle string, ok bool) {
	var exitDir string
	for i := 1; i+1 < len(args); i++ {
		switch args[i] {
		case "--exit-dir":
			exitDir = args[i+1]
		case "--cid":
			id = args[i+1]
		case "--bundle":
			bundle = args[i+1]
		case "--runtime":
			i = len(args) // what follows is the runtime's
		}
	}
	if exitDir != e.exitDir || !validID().MatchString(id) {
		return "", "", false
	}
	return id, bundle, shares(pid, "mnt")
}
