package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/cmd/internal/logs"
	"github.com/subpod/subpod/pkg/api"
	"github.com/subpod/subpod/pkg/client"
)

func newStart(a *app) *cobra.Command {
	var attach bool
	s := &selection{}
	cmd := &cobra.Command{
		Use:   "start [flags] CONTAINER|POD...",
		Short: "Start containers or pods that were created, were stopped or have exited",
		Long: `Starts what "subpod run", "create" or "play" has made. A container that has exited is
made again: it keeps its ID, name, ports, volumes and log, and one of "run" or "create"
its files. Starting what runs is not an error.`,
		Example: "  subpod start web\n  subpod start -a job",
		Args:    s.args(),
		RunE: a.runStarting(func(cmd *cobra.Command, conn *connection, args []string) error {
			args, err := s.refs(cmd.Context(), conn.Client, args, containersIn(runtimeapi.ContainerState_CONTAINER_CREATED, runtimeapi.ContainerState_CONTAINER_EXITED))
			if err != nil {
				return err
			}
			if attach && len(args) != 1 {
				return usagef("-a takes a single container")
			}
			if attach {
				return runCode(startAttached(cmd.Context(), conn, args[0]))
			}
			return each(args, func(ref string) error {
				t, id, err := startable(cmd.Context(), conn, ref)
				if err == nil {
					err = client.Start(cmd.Context(), conn.Client, t.pod.Id, id)
				}
				if err == nil {
					err = conn.writePIDFiles(cmd.Context(), t)
				}
				if err != nil {
					return err
				}
				fmt.Fprintln(cmd.OutOrStdout(), ref)
				return nil
			})
		}),
		ValidArgsFunction: a.completeBoth,
	}
	cmd.Flags().BoolVarP(&attach, "attach", "a", false, "show the output and exit with the code of the container")
	cmd.Flags().BoolVar(&s.all, "all", false, "all containers that do not run")
	s.addFilter(cmd.Flags(), "f")
	return withLatest(cmd, false, a.connectOrStart)
}

// startable returns what is to be started and, unless all of it is meant, the ID of the
// container. A new node is granted the paths of the host that the old one was for it.
func startable(ctx context.Context, conn *connection, ref string) (t target, id string, err error) {
	if t, err = find(ctx, conn.Client, ref); err != nil {
		return t, "", err
	}
	if !t.wholePod {
		id = t.containers[0].Id
	}
	for _, x := range t.containers {
		st, err := conn.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: x.Id})
		if err == nil {
			err = conn.GrantFor(&runtimeapi.ContainerConfig{Mounts: st.Status.GetMounts()})
		}
		if err != nil {
			return t, "", err
		}
	}
	return t, id, nil
}

// startAttached starts a container, shows what it writes from then on, and returns its
// exit code.
func startAttached(ctx context.Context, conn *connection, ref string) error {
	x, err := conn.Container(ctx, ref)
	if err != nil {
		return err
	}
	if x.State == runtimeapi.ContainerState_CONTAINER_RUNNING {
		return fmt.Errorf("container %s is running; see \"subpod attach %s\"", x.Name(), ref)
	}
	since, attempt := time.Now(), x.Metadata.GetAttempt()
	if x.State == runtimeapi.ContainerState_CONTAINER_EXITED {
		attempt++
	}
	if err := client.Start(ctx, conn.Client, x.PodSandboxId, x.Id); err != nil {
		return err
	}
	if err := conn.writePIDFile(ctx, x.Annotations, x.Id); err != nil {
		warn("%v", err) // it runs
	}
	run := waitForRun(ctx, conn.Client, x.Id, attempt)
	s := &session{client: conn.Client, containerID: x.Id}
	s.forwardSignals(ctx)
	o := logs.Options{
		Tail: -1, Since: since, Follow: true, Ended: run.hasEnded,
		Skip: func(line time.Time) bool { return run.isLater(ctx, line) },
	}
	if err := showLog(ctx, conn.Client, x.Id, o, false, os.Stdout, os.Stderr); err != nil {
		return err
	}
	<-run.ended
	if run.err == nil && run.exit.ExitCode != 0 {
		return exitStatus(run.exit.ExitCode)
	}
	return run.err
}

// oneRun is one run of a container, which may be restarted after it.
type oneRun struct {
	client  *client.Client
	id      string
	attempt uint32
	seen    time.Time     // it went on then
	ended   chan struct{} // the rest is set once it is closed
	exit    *api.WaitResponse
	err     error
}

// waitForRun waits for the end of the run with that number, also across a restart of the
// server, and when others have begun since.
func waitForRun(ctx context.Context, c *client.Client, id string, attempt uint32) *oneRun {
	r := &oneRun{client: c, id: id, attempt: attempt, ended: make(chan struct{})}
	go func() {
		defer close(r.ended)
		for {
			r.exit, r.err = c.Wait(ctx, id, &attempt)
			if r.err == nil || client.IsNotFound(r.err) {
				return
			}
			select { // not started yet, or the server is being replaced
			case <-ctx.Done():
				return
			case <-time.After(logsRetryInterval):
			}
		}
	}()
	return r
}

func (r *oneRun) hasEnded() bool {
	select {
	case <-r.ended:
		return true
	default:
		return false
	}
}

// drain is how long after its end the last lines of a run can be written. The next run
// takes longer than that to be made.
const drain = 10 * time.Millisecond

// isLater reports whether a line of that time was written by a later run. What is there
// when no later run is was not.
func (r *oneRun) isLater(ctx context.Context, line time.Time) bool {
	switch {
	case !r.hasEnded() && !line.After(r.seen):
		return false
	case r.hasEnded() && !r.afterEnd(line):
		return false
	}
	now := time.Now()
	st, err := r.client.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: r.id})
	if err != nil { // the server is being replaced
		return false
	}
	if st.Status.Metadata.GetAttempt() == r.attempt {
		r.seen = now
		return false
	}
	<-r.ended
	return r.afterEnd(line)
}

func (r *oneRun) afterEnd(line time.Time) bool {
	return r.exit != nil && !r.exit.FinishedAt.IsZero() && line.After(r.exit.FinishedAt.Add(drain))
}

func newRestart(a *app) *cobra.Command {
	var timeout int64
	var running bool
	s := &selection{}
	cmd := &cobra.Command{
		Use:   "restart [flags] CONTAINER|POD...",
		Short: "Stop containers or pods, and start them",
		Long: `Stops what runs as "subpod stop" does, and starts it as "subpod start" does. The pod
keeps its address and host ports.`,
		Example: "  subpod restart web\n  subpod restart -t 0 web db\n  subpod restart --running",
		Args: func(cmd *cobra.Command, args []string) error {
			if running {
				return exactly(0)(cmd, args)
			}
			return s.args()(cmd, args)
		},
		RunE: a.run(func(cmd *cobra.Command, conn *connection, args []string) error {
			if timeout < 0 {
				return usagef("invalid -t %d: it must not be negative", timeout)
			}
			args, err := s.refs(cmd.Context(), conn.Client, args, containersIn())
			if running && !s.all {
				args, err = runningContainers(cmd.Context(), conn.Client)
			}
			if err != nil {
				return err
			}
			return each(args, func(ref string) error {
				t, id, err := startable(cmd.Context(), conn, ref)
				if err == nil {
					err = client.Restart(cmd.Context(), conn.Client, t.pod.Id, id, timeout)
				}
				if err == nil {
					err = conn.writePIDFiles(cmd.Context(), t)
				}
				if err != nil {
					return err
				}
				fmt.Fprintln(cmd.OutOrStdout(), ref)
				return nil
			})
		}),
		ValidArgsFunction: a.completeBoth,
	}
	cmd.Flags().Int64VarP(&timeout, "time", "t", 10, "seconds to wait before SIGKILL")
	cmd.Flags().BoolVar(&running, "running", false, "all containers that run")
	s.addAll(cmd.Flags(), "all containers")
	s.addFilter(cmd.Flags(), "f")
	s.addIDFiles(cmd.Flags())
	return a.withLatest(cmd, false)
}

func newKill(a *app) *cobra.Command {
	var name string
	s := &selection{}
	cmd := &cobra.Command{
		Use:   "kill [flags] CONTAINER...",
		Short: "Send a signal to containers",
		Long: `Sends SIGKILL, or another signal, to the first process of containers. One that is ended
by SIGKILL or by its stop signal is not restarted, whatever its restart policy.`,
		Example: "  subpod kill web\n  subpod kill -s HUP web",
		Args:    s.args(),
		RunE: a.run(func(cmd *cobra.Command, conn *connection, args []string) error {
			sig, err := parseSignal(name)
			if err == nil {
				args, err = s.refs(cmd.Context(), conn.Client, args, runningContainers)
			}
			if err != nil {
				return err
			}
			return each(args, func(ref string) error {
				t, err := find(cmd.Context(), conn.Client, ref)
				if err != nil {
					return err
				}
				var errs []error
				killed := false
				for _, x := range t.containers {
					err := client.Kill(cmd.Context(), conn.Client, x.Id, int(sig))
					if t.wholePod && err != nil && x.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
						errs = append(errs, err) // it matters if nothing of the pod runs
						continue
					}
					if err != nil {
						return err
					}
					killed = true
				}
				if !killed {
					return errors.Join(errs...)
				}
				fmt.Fprintln(cmd.OutOrStdout(), ref)
				return nil
			})
		}),
		ValidArgsFunction: a.completeBoth,
	}
	cmd.Flags().StringVarP(&name, "signal", "s", "KILL", "signal, by its name or number")
	s.addAll(cmd.Flags(), "all containers that run")
	s.addIDFiles(cmd.Flags())
	return a.withLatest(cmd, false)
}

// parseSignal returns a signal by its number, or its name with or without SIG.
func parseSignal(s string) (unix.Signal, error) {
	if n, err := strconv.Atoi(s); err == nil && n > 0 && n < 65 {
		return unix.Signal(n), nil
	}
	name := strings.ToUpper(s)
	if !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	if sig := unix.SignalNum(name); sig != 0 {
		return sig, nil
	}
	return 0, usagef("invalid -s %q: expected a signal such as TERM, SIGHUP or 9", s)
}

func newPause(a *app, resume bool) *cobra.Command {
	s := &selection{}
	cmd := &cobra.Command{
		Use:   "pause [flags] CONTAINER|POD...",
		Short: "Freeze the processes of containers",
		Long: `Freezes all processes of containers until "subpod unpause". It needs a delegated cgroup
v2, as a systemd user session has it: "subpod doctor" says whether there is one.`,
		Example:           "  subpod pause web && subpod unpause web",
		Args:              s.args(),
		ValidArgsFunction: a.completeBoth,
	}
	if resume {
		cmd.Use, cmd.Short = "unpause [flags] CONTAINER|POD...", "Let frozen processes of containers go on"
		cmd.Long, cmd.Example = `Undoes "subpod pause".`, "  subpod unpause web"
	}
	cmd.RunE = a.run(func(cmd *cobra.Command, conn *connection, args []string) error {
		args, err := s.refs(cmd.Context(), conn.Client, args, runningContainers)
		if err != nil {
			return err
		}
		return each(args, func(ref string) error {
			t, err := find(cmd.Context(), conn.Client, ref)
			if err != nil {
				return err
			}
			for _, x := range t.containers {
				if t.wholePod && len(t.containers) > 1 && x.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
					continue
				}
				if err := client.Pause(cmd.Context(), conn.Client, x.Id, resume); err != nil {
					return err
				}
			}
			fmt.Fprintln(cmd.OutOrStdout(), ref)
			return nil
		})
	})
	s.addAll(cmd.Flags(), "all containers that run")
	s.addFilter(cmd.Flags(), "f")
	s.addIDFiles(cmd.Flags())
	return a.withLatest(cmd, false)
}

func newRename(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "rename CONTAINER NAME",
		Short: "Give a container of \"run\" or \"create\", and its pod, another name",
		Long: `The host name inside of the container stays, as do IDs, log and volumes. Pods of "play"
keep the name that their manifest gives.`,
		Example: "  subpod rename web web-old",
		Args:    exactly(2),
		RunE: a.run(func(cmd *cobra.Command, conn *connection, args []string) error {
			if !isName(args[1]) {
				return usagef("invalid name %q: expected at most 63 letters, digits, '_', '.' and '-', beginning with a letter or digit", args[1])
			}
			t, err := find(cmd.Context(), conn.Client, args[0])
			if err != nil {
				return err
			}
			err = client.Rename(cmd.Context(), conn.Client, t.pod.Id, args[1])
			return err
		}),
		ValidArgsFunction: a.completeBoth,
	}
}
