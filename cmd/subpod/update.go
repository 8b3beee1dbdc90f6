package main

import (
	"fmt"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/client"
	"github.com/subpod/subpod/pkg/workload"
)

// refusedUpdate are the flags of "podman update" that there are not.
var refusedUpdate = refused{
	"blkio-weight": refusedRun["blkio-weight"], "blkio-weight-device": refusedRun["blkio-weight-device"],
	"device-read-bps": refusedRun["device-read-bps"], "device-read-iops": refusedRun["device-read-iops"],
	"device-write-bps": refusedRun["device-write-bps"], "device-write-iops": refusedRun["device-write-iops"],
	"cpu-rt-period": refusedRun["cpu-rt-period"], "cpu-rt-runtime": refusedRun["cpu-rt-runtime"], "memory-swappiness": refusedRun["memory-swappiness"],
	"env/e": updateAnew, "unsetenv": updateAnew, "ulimit": updateAnew,
	"health-cmd": updateAnew, "health-interval": updateAnew, "health-log-destination": updateAnew, "health-max-log-count": updateAnew,
	"health-max-log-size": updateAnew, "health-on-failure": updateAnew, "health-retries": updateAnew, "health-start-period": updateAnew,
	"health-startup-cmd": updateAnew, "health-startup-interval": updateAnew, "health-startup-retries": updateAnew,
	"health-startup-success": updateAnew, "health-startup-timeout": updateAnew, "health-timeout": updateAnew, "no-healthcheck": updateAnew,
}

const updateAnew = notYet + "only limits and the restart policy can be changed; use \"run --replace\""

func newUpdate(a *app) *cobra.Command {
	o := &runOptions{}
	cmd := &cobra.Command{
		Use:   "update [flags] CONTAINER",
		Short: "Change the limits or the restart policy of a container",
		Long: `Changes what the flags name of a container that runs or was created; the rest stays. The
new limits also hold when it is restarted. Limits need a delegated cgroup, as for "subpod run".`,
		Example: "  subpod update -m 1g --cpus 2 web\n  subpod update --restart unless-stopped web",
		Args:    exactly(1),
		RunE: a.run(func(cmd *cobra.Command, conn *connection, args []string) error {
			o.given = cmd.Flags().Changed
			return update(cmd, conn, o, args[0])
		}),
		ValidArgsFunction: a.completeBoth,
	}
	f := cmd.Flags()
	f.StringVar(&o.restart, "restart", "", "when to restart an exited container: no, on-failure[:MAX], unless-stopped or always")
	f.StringVarP(&o.memory, "memory", "m", "", "memory limit, such as 512m or 2g")
	f.Float64Var(&o.cpus, "cpus", 0, "CPU limit, such as 1.5")
	o.addResourceFlags(f)
	addRefused(f, refusedUpdate)
	return a.withLatest(cmd, false)
}

func update(cmd *cobra.Command, conn *connection, o *runOptions, ref string) error {
	ctx, limits := cmd.Context(), o.limited()
	if _, err := workload.ParsePolicy(o.restart); err != nil {
		return usagef("invalid --restart %w", err)
	}
	switch {
	case len(limits) == 0 && !o.given("restart"):
		return usagef("nothing to change: name a limit, or --restart")
	case !validCPUs(o.cpus):
		return invalidCPUs(o.cpus)
	case o.given("cpus") && (o.given("cpu-period") || o.given("cpu-quota")):
		return usagef("--cpus excludes --cpu-period and --cpu-quota")
	}
	cfg := &runtimeapi.ContainerConfig{Linux: &runtimeapi.LinuxContainerConfig{}}
	if err := o.fillLimits(cfg); err != nil {
		return err
	}
	x, err := conn.Container(ctx, ref)
	if err != nil {
		return err
	}
	if err := o.warnings(ctx, conn.Client); err != nil {
		return err
	}
	if o.given("restart") {
		if err := client.SetRestart(ctx, conn.Client, x.Id, o.restart); err != nil {
			return err
		}
	}
	if len(limits) > 0 {
		_, err := conn.UpdateContainerResources(ctx, &runtimeapi.UpdateContainerResourcesRequest{ContainerId: x.Id, Linux: cfg.Linux.Resources})
		if err != nil {
			return err
		}
	}
	fmt.Fprintln(cmd.OutOrStdout(), x.Id)
	return nil
}
