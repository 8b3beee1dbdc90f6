package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/api"
	"github.com/subpod/subpod/pkg/client"
)

func newStop(a *app) *cobra.Command {
	var timeout int64
	var ignore bool
	s := &selection{}
	cmd := &cobra.Command{
		Use:   "stop [flags] CONTAINER|POD...",
		Short: "Stop containers or pods",
		Long: `Sends the stop signal of the container (SIGTERM, or that of the image), and SIGKILL
after the timeout. Stopping a stopped container is not an error.`,
		Example: "  subpod stop web\n  subpod stop -t 0 web db",
		Args:    s.args(),
		RunE: a.run(func(cmd *cobra.Command, conn *connection, args []string) error {
			if timeout < 0 {
				return usagef("invalid -t %d: it must not be negative", timeout)
			}
			grace := timeout
			if !cmd.Flags().Changed("time") && !cmd.Flags().Changed("timeout") {
				grace = ownTimeout
			}
			args, err := s.refs(cmd.Context(), conn.Client, args, allPods)
			if err != nil {
				return err
			}
			return each(args, func(ref string) error {
				err := stop(cmd.Context(), conn, ref, grace)
				if ignore && errors.Is(err, client.ErrNotFound) {
					return nil
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
	cmd.Flags().Int64VarP(&timeout, "time", "t", defaultGrace, "seconds to wait before SIGKILL (default: --stop-timeout of the container)")
	cmd.Flags().Int64Var(&timeout, "timeout", defaultGrace, "as --time")
	cmd.Flags().BoolVarP(&ignore, "ignore", "i", false, "ignore what does not exist")
	s.addAll(cmd.Flags(), "all pods")
	s.addFilter(cmd.Flags(), "f")
	s.addIDFiles(cmd.Flags())
	return a.withLatest(cmd, false)
}

// defaultGrace is how long a container has to stop, in seconds, unless it or the command
// says otherwise; ownTimeout stands for what the container says.
const (
	defaultGrace = 10
	ownTimeout   = -1
)

// graceOf returns how long a container has to stop, in seconds.
func graceOf(x client.Container, asked int64) int64 {
	if asked != ownTimeout {
		return asked
	}
	if o, err := api.Options(x.Annotations); err == nil && o.StopTimeout != nil {
		return *o.StopTimeout
	}
	return defaultGrace
}

// argsOrAll wants arguments, or none with --all.
func argsOrAll(all *bool) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if *all {
			return exactly(0)(cmd, args)
		}
		return atLeast(1)(cmd, args)
	}
}

func stop(ctx context.Context, conn *connection, ref string, timeout int64) error {
	target, err := find(ctx, conn.Client, ref)
	if err != nil {
		return err
	}
	var errs []error
	for _, x := range target.containers {
		_, err := conn.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: x.Id, Timeout: graceOf(x, timeout)})
		errs = append(errs, err)
	}
	if target.wholePod {
		// Its network and host ports are free when this returns.
		_, err := conn.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: target.pod.Id})
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// target is the object that a name on the command line refers to: a container, or
// a pod with its containers.
type target struct {
	pod        *runtimeapi.PodSandbox
	containers []client.Container
	wholePod   bool
}

// find looks up a pod, then a container. The container of a pod that "run" has
// created stands for that pod.
func find(ctx context.Context, c *client.Client, ref string) (target, error) {
	pod, err := c.Pod(ctx, ref)
	if errors.Is(err, client.ErrNotFound) {
		x, err := c.Container(ctx, ref)
		if err != nil {
			if errors.Is(err, client.ErrNotFound) {
				err = fmt.Errorf("container or pod %q: %w", ref, client.ErrNotFound)
			}
			return target{}, err
		}
		if x.Pod.Labels[api.LabelMadeBy] != api.MadeByRun || x.Metadata.GetName() != x.Pod.Metadata.GetName() {
			return target{pod: x.Pod, containers: []client.Container{x}}, nil
		}
		return target{pod: x.Pod, containers: []client.Container{x}, wholePod: true}, nil
	}
	if err != nil {
		return target{}, err
	}
	all, err := c.Containers(ctx)
	if err != nil {
		return target{}, err
	}
	t := target{pod: pod, wholePod: true}
	for _, x := range all {
		if x.PodSandboxId == pod.Id {
			t.containers = append(t.containers, x)
		}
	}
	return t, nil
}

func newRm(a *app) *cobra.Command {
	var force, volumes, ignore bool
	var timeout int64
	s := &selection{}
	cmd := &cobra.Command{
		Use:     "rm [flags] CONTAINER|POD...",
		Short:   "Remove containers, or pods with their containers",
		Example: "  subpod rm web\n  subpod rm -f web db\n  subpod rm --all",
		Args:    s.args(),
		RunE: a.run(func(cmd *cobra.Command, conn *connection, args []string) error {
			args, err := s.refs(cmd.Context(), conn.Client, args, func(ctx context.Context, c *client.Client) ([]string, error) {
				return removable(ctx, c, force)
			})
			if err != nil {
				return err
			}
			return each(args, func(ref string) error {
				if timeout >= 0 && force {
					_ = stop(cmd.Context(), conn, ref, timeout) // the removal says what is wrong
				}
				err := remove(cmd.Context(), conn, ref, force)
				if (ignore || force) && errors.Is(err, client.ErrNotFound) {
					return nil
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
	cmd.Flags().BoolVarP(&force, "force", "f", false, "also remove what runs, which is killed, or is restarted")
	s.addAll(cmd.Flags(), "all pods that neither run nor are restarted (with -f: all pods)")
	s.addFilter(cmd.Flags(), "")
	s.addIDFiles(cmd.Flags())
	cmd.Flags().BoolVarP(&volumes, "volumes", "v", false, "also remove the volumes that only they have (these always go: no effect)")
	cmd.Flags().BoolVarP(&ignore, "ignore", "i", false, "ignore what does not exist")
	cmd.Flags().Int64VarP(&timeout, "time", "t", -1, "with -f, seconds to wait before running containers are killed")
	return a.withLatest(cmd, false)
}

// allPods returns the IDs of all pods.
func allPods(ctx context.Context, c *client.Client) ([]string, error) { return removable(ctx, c, true) }

// removable returns the IDs of the pods without running containers, or of all pods.
func removable(ctx context.Context, c *client.Client, force bool) ([]string, error) {
	pods, err := c.Pods(ctx)
	if err != nil {
		return nil, err
	}
	list, err := c.Containers(ctx)
	if err != nil {
		return nil, err
	}
	busy := map[string]bool{}
	for _, x := range list {
		busy[x.PodSandboxId] = busy[x.PodSandboxId] || x.State == runtimeapi.ContainerState_CONTAINER_RUNNING
	}
	var ids []string
	for _, p := range pods {
		if !force && !busy[p.Id] {
			busy[p.Id], err = supervised(ctx, c, p.Id)
			if client.IsNotFound(err) {
				continue
			}
			if err != nil {
				return nil, err
			}
		}
		if force || !busy[p.Id] {
			ids = append(ids, p.Id)
		}
	}
	return ids, nil
}

// supervised reports whether the daemon keeps a pod running: what has ended in it is
// restarted, unless its user stops it.
func supervised(ctx context.Context, c *client.Client, podID string) (bool, error) {
	var info struct{ Supervised bool }
	st, err := c.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: podID, Verbose: true})
	if err != nil {
		return false, err
	}
	err = decodeInfo(st.Info, "pod sandbox "+podID, &info)
	return info.Supervised, err
}

// How long, and how often, goesOn looks.
const (
	supervisorGrace = time.Second
	supervisorPoll  = 50 * time.Millisecond
)

// goesOn is supervised for a pod in which nothing runs: of what has ended just now, killed
// by its user or for good, the daemon learns a moment later than who waits for it.
func goesOn(ctx context.Context, c *client.Client, podID string) (bool, error) {
	for end := time.Now().Add(supervisorGrace); ; time.Sleep(supervisorPoll) {
		restarts, err := supervised(ctx, c, podID)
		if err != nil || !restarts || time.Now().After(end) {
			return restarts, err
		}
	}
}

func remove(ctx context.Context, conn *connection, ref string, force bool) error {
	t, err := find(ctx, conn.Client, ref)
	if err != nil {
		return err
	}
	for _, x := range t.containers {
		if x.State == runtimeapi.ContainerState_CONTAINER_RUNNING && !force {
			return fmt.Errorf("container %s is running; stop it first (subpod stop), or use -f", x.Name())
		}
	}
	if t.wholePod && !force {
		switch restarts, err := goesOn(ctx, conn.Client, t.pod.Id); {
		case client.IsNotFound(err): // removed in the meantime
		case err != nil:
			return err
		case restarts:
			return fmt.Errorf("pod %s is being restarted; stop it first (subpod stop), or use -f", client.PodName(t.pod))
		}
	}
	if t.wholePod {
		config, err := podConfig(ctx, conn.Client, t.pod.Id)
		if err != nil && !client.IsNotFound(err) {
			return err
		}
		return removePod(ctx, conn, t.pod.Id, config.LogDirectory)
	}
	x := t.containers[0]
	st, err := conn.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: x.Id})
	if err != nil {
		return err
	}
	if _, err := conn.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: x.Id}); err != nil {
		return err
	}
	if log := st.Status.LogPath; log != "" && filepath.Dir(filepath.Dir(log)) == logsDir(conn.config) {
		if err := os.Remove(log); err != nil && !os.IsNotExist(err) {
			return err
		}
	}
	return nil
}
