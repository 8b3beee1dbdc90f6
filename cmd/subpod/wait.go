package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/client"
)

// waitFlags are the flags of "wait".
type waitFlags struct {
	conditions    []string
	interval      string
	ignore, first bool

	pause time.Duration // of interval
}

// otherCondition is what "wait" prints for a container that has not exited.
const otherCondition = -1

// conditionStates are the conditions that are states of a container.
var conditionStates = map[string]runtimeapi.ContainerState{
	"configured": runtimeapi.ContainerState_CONTAINER_CREATED, "created": runtimeapi.ContainerState_CONTAINER_CREATED,
	"initialized": runtimeapi.ContainerState_CONTAINER_CREATED, "running": runtimeapi.ContainerState_CONTAINER_RUNNING,
}

func newWait(a *app) *cobra.Command {
	o := &waitFlags{}
	cmd := &cobra.Command{
		Use:   "wait [flags] CONTAINER...",
		Short: "Wait until containers have exited, and print their exit codes",
		Long: `Prints the exit code of each container, one a line, once it has exited; at once for one
that has. A container that is restarted later has exited all the same. For a condition
other than exited, -1 is printed.`,
		Example: "  subpod run -d --name job busybox sleep 5 && subpod wait job\n  subpod wait --condition healthy web",
		Args:    atLeast(1),
		RunE: a.run(func(cmd *cobra.Command, conn *connection, args []string) error {
			if err := o.check(); err != nil {
				return err
			}
			show := func(code int32) { fmt.Fprintln(cmd.OutOrStdout(), code) }
			if o.first {
				code, err := o.firstOf(cmd.Context(), conn.Client, args)
				if err == nil {
					show(code)
				}
				return err
			}
			return each(args, func(ref string) error {
				code, err := o.wait(cmd.Context(), conn.Client, ref)
				if err == nil {
					show(code)
				}
				return err
			})
		}),
		ValidArgsFunction: a.completeBoth,
	}
	f := cmd.Flags()
	f.StringArrayVar(&o.conditions, "condition", nil, "exited (default), created, running, paused, healthy, unhealthy or removing; may be repeated: one of them is enough")
	f.StringVarP(&o.interval, "interval", "i", "250ms", "time between two looks for a condition other than exited; milliseconds without a unit")
	f.BoolVar(&o.ignore, "ignore", false, "print -1 for what does not exist")
	f.BoolVar(&o.first, "exit-first-match", false, "wait for the first of the containers only")
	return a.withLatest(cmd, false)
}

func (o *waitFlags) check() error {
	var err error
	if ms, numErr := strconv.Atoi(o.interval); numErr == nil {
		o.pause = time.Duration(ms) * time.Millisecond
	} else if o.pause, err = time.ParseDuration(o.interval); err != nil {
		return usagef("invalid --interval %q: expected a duration such as 500ms", o.interval)
	}
	o.pause = max(o.pause, time.Millisecond)
	var all []string
	for _, c := range o.conditions {
		all = append(all, strings.Split(c, ",")...)
	}
	o.conditions = all
	for _, c := range all {
		switch _, isState := conditionStates[c]; {
		case isState, c == "exited", c == "stopped", c == "healthy", c == "unhealthy", c == "removing", c == statePaused:
		case c == "stopping":
			return usagef("--condition %s is refused: no container of this runtime is in that state for a client", c)
		default:
			return usagef("invalid --condition %q: expected exited, stopped, created, running, paused, healthy, unhealthy or removing", c)
		}
	}
	return nil
}

// firstOf waits for the first of several containers.
func (o *waitFlags) firstOf(ctx context.Context, c *client.Client, refs []string) (int32, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		code int32
		err  error
	}
	results := make(chan result, len(refs))
	for _, ref := range refs {
		go func() {
			code, err := o.wait(ctx, c, ref)
			results <- result{code, err}
		}()
	}
	r := <-results
	return r.code, r.err
}

// wait returns the exit code of a container once a condition holds, otherCondition if it
// is another one than its end.
func (o *waitFlags) wait(ctx context.Context, c *client.Client, ref string) (int32, error) {
	x, err := c.Container(ctx, ref)
	if o.ignore && errors.Is(err, client.ErrNotFound) {
		return otherCondition, nil
	}
	if err != nil {
		return 0, err
	}
	exits := func(name string) bool { return name == "exited" || name == "stopped" }
	if len(o.conditions) == 0 || !slices.ContainsFunc(o.conditions, func(c string) bool { return !exits(c) }) {
		exit, err := c.Wait(ctx, x.Id, nil)
		if err != nil {
			return 0, err
		}
		return exit.ExitCode, nil
	}
	for {
		code, done, err := o.look(ctx, c, x.Id)
		if done || err != nil {
			return code, err
		}
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-time.After(o.pause):
		}
	}
}

// look reports whether one of the conditions holds.
func (o *waitFlags) look(ctx context.Context, c *client.Client, id string) (code int32, done bool, err error) {
	st, err := c.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id, Verbose: true})
	if client.IsNotFound(err) {
		if slices.Contains(o.conditions, "removing") {
			return otherCondition, true, nil
		}
		return 0, false, err
	}
	if err != nil {
		return 0, false, err
	}
	var info struct {
		Health struct{ Status string } `json:"health"`
		Paused bool                    `json:"paused"`
	}
	if err := decodeInfo(st.Info, "container "+id, &info); err != nil {
		return 0, false, err
	}
	for _, name := range o.conditions {
		state, isState := conditionStates[name]
		switch {
		case isState && st.Status.State == state && !info.Paused, name == statePaused && info.Paused:
			return otherCondition, true, nil
		case (name == "healthy" || name == "unhealthy") && info.Health.Status == name:
			return otherCondition, true, nil
		case (name == "exited" || name == "stopped") && st.Status.State == runtimeapi.ContainerState_CONTAINER_EXITED:
			return st.Status.ExitCode, true, nil
		}
	}
	return 0, false, nil
}
