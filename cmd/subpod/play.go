package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"sync"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/cmd/internal/kube"
	"github.com/subpod/subpod/cmd/internal/play"
	"github.com/subpod/subpod/pkg/api"
	"github.com/subpod/subpod/pkg/tree"
	"github.com/subpod/subpod/rootless"
)

// playOptions are the flags of "play".
type playOptions struct {
	down, logs, replace, detach, quiet bool
	networks                           []string
}

func newPlay(a *app) *cobra.Command {
	o := &playOptions{}
	cmd := &cobra.Command{
		Use:   "play [flags] FILE...",
		Short: "Run the pods of Kubernetes manifests",
		Long: `Runs what Kubernetes manifests ("-" is standard input) describe: Pods, Deployments,
StatefulSets, DaemonSets and Jobs, with their Services, ConfigMaps, Secrets and
PersistentVolumeClaims. Services are found by name; those of type NodePort and
LoadBalancer also have ports of the host. Claims are named volumes and are kept. The
daemon runs the pods as in a cluster: init containers, sidecars, probes, hooks and
restart policies go on whatever becomes of this command, and after a restart of the
daemon or the machine.

The command exits when all pods have completed, with 0 if they succeeded. When
interrupted, it stops and removes them. With -d it exits once they are up; they run
until they complete, are stopped (subpod stop) or are removed with --down.

What has no meaning here (Ingress, Role, affinity, ...) is skipped and named once;
CronJobs are not scheduled. Unknown fields are errors.`,
		Example: `  subpod play pod.yaml
  subpod play --logs job.yaml
  subpod play -d app.yaml && subpod play --down app.yaml`,
		Args: atLeast(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.down && (o.detach || o.replace || o.logs) {
				return usagef("--down cannot be combined with other flags")
			}
			if args[0] == "kube" && len(args) > 1 { // as Podman calls it, too
				args = args[1:]
			}
			manifests, err := readManifests(args)
			if err != nil {
				return err
			}
			set, err := kube.Parse(manifests...)
			if err != nil {
				return err
			}
			if err := o.attach(set); err != nil {
				return err
			}
			connect := a.connectOrStart
			if o.down {
				connect = a.connect
			}
			conn, err := connect()
			if err != nil {
				return err
			}
			defer conn.Close()
			return o.play(cmd.Context(), conn, set)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&o.down, "down", false, "stop and remove the pods")
	f.BoolVar(&o.logs, "logs", false, "show the logs of the containers")
	f.BoolVar(&o.replace, "replace", false, "remove existing pods of the same names first")
	f.BoolVarP(&o.detach, "detach", "d", false, "exit once all containers are up; the daemon keeps them running")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "do not print status messages")
	f.StringArrayVar(&o.networks, "network", nil, "network of the pods, as of \"subpod run\" (may be repeated)")
	f.StringArrayVar(&o.networks, "net", nil, "the same as --network")
	must(f.MarkHidden("net"))
	addRefused(f, refusedPlay)
	return cmd
}

// readManifests reads the files.
func readManifests(files []string) ([]kube.Source, error) {
	var all []kube.Source
	for _, name := range files {
		if strings.HasPrefix(name, "https://") || strings.HasPrefix(name, "http://") {
			return nil, usagef("%s is refused: nothing is fetched from the network: curl -L %s | subpod play -", name, name)
		}
		text, err := readSource(name, kube.MaxManifest)
		if err != nil {
			return nil, fmt.Errorf("read the manifest: %w", err)
		}
		if name == "-" {
			name = "standard input"
		}
		all = append(all, kube.Source{Name: name, Text: text})
	}
	return all, nil
}

func (o *playOptions) play(ctx context.Context, conn *connection, set *kube.Set) error {
	ctx, stop := signal.NotifyContext(ctx, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	opts := o.options(conn)
	if o.down {
		return play.Down(ctx, set, opts)
	}
	if o.replace {
		if err := play.Down(ctx, set, opts); err != nil {
			return err
		}
	}
	for _, line := range append(set.Notes(), set.HostPorts()...) {
		opts.Report("%s", line)
	}
	err := play.Play(ctx, set, opts)
	if ctx.Err() != nil && err == nil {
		return exitStatus(128 + int(unix.SIGINT))
	}
	return err
}

// attach puts the pods into the networks that the flags name.
func (o *playOptions) attach(set *kube.Set) error {
	n := networkOptions{networks: o.networks}
	if err := n.check(); err != nil {
		return err
	}
	if n.network != "pod" {
		return usagef("--network %s is not supported: the manifest says which pods are on the node's network (hostNetwork)", n.network)
	}
	set.Attach(n.attachments)
	return nil
}

func (o *playOptions) options(conn *connection) play.Options {
	var mu sync.Mutex
	opts := play.Options{
		Client: conn.Client, DataDir: conn.config.Daemon.DataDir, RunDir: conn.config.Daemon.RunDir, Detach: o.detach,
		Report: func(format string, args ...any) {
			if o.quiet {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			fmt.Fprintln(os.Stderr, plainLines(fmt.Sprintf(format, args...)))
		},
		Pull: func(ctx context.Context, ref string) error {
			return pull(ctx, conn.Client, &api.PullRequest{Ref: ref}, o.quiet)
		},
		Remove: func(ctx context.Context, dir string) error { return removeTree(ctx, conn, dir) },
	}
	if o.logs {
		opts.Logs = os.Stdout
	}
	return opts
}

// removeTree removes a directory that containers have written to, as root of the
// node if the user does not have the permission.
func removeTree(ctx context.Context, conn *connection, dir string) error {
	err := tree.RemoveAll(dir)
	if !errors.Is(err, os.ErrPermission) {
		return err
	}
	code, err := rootless.Enter(ctx, conn.config.Daemon.RunDir, []string{"rm", "-rf", "--", dir},
		rootless.EnterOptions{HostNetwork: true, Stderr: os.Stderr})
	if err == nil && code != 0 {
		err = fmt.Errorf("remove %s: rm exited with code %d", dir, code)
	}
	return err
}
