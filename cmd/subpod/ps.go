package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/api"
	"github.com/subpod/subpod/pkg/client"
)

// containerRow is a row of the output of "ps".
type containerRow struct {
	ID       string            `json:"id"`
	Name     string            `json:"name"`
	Image    string            `json:"image"`
	Command  string            `json:"command"`
	State    string            `json:"state"`
	ExitCode *int32            `json:"exitCode"`
	Created  time.Time         `json:"created"`
	Started  *time.Time        `json:"started"`
	Finished *time.Time        `json:"finished"`
	Ports    []string          `json:"ports"`
	Pod      string            `json:"pod"`
	PodID    string            `json:"podId"`
	Labels   map[string]string `json:"labels"`
	// Health is starting, healthy or unhealthy; empty without a check.
	Health  string   `json:"health,omitempty"`
	ImageID string   `json:"imageId"`
	Volumes []string `json:"volumes"`
	// Networks are the names of its networks.
	Networks []string `json:"networks"`
}

func (r containerRow) status() string {
	if r.Health != "" && r.State == "running" && r.Started != nil {
		return "Up " + duration(time.Since(*r.Started)) + " (" + r.Health + ")"
	}
	switch {
	case r.State == "exited" && r.Finished != nil:
		return fmt.Sprintf("Exited (%d) %s", *r.ExitCode, ago(*r.Finished))
	case r.State == "running" && r.Started != nil:
		return "Up " + duration(time.Since(*r.Started))
	}
	return strings.ToUpper(r.State[:1]) + r.State[1:]
}

// psFlags are the flags of "ps".
type psFlags struct {
	all, quiet, noTrunc, noHeading, latest, pod, sync bool
	last                                              int
	filters                                           []string
	sort                                              string
	out                                               *format
}

func newPs(a *app) *cobra.Command {
	o := &psFlags{}
	cmd := &cobra.Command{
		Use:   "ps [flags]",
		Short: "List containers",
		Example: `  subpod ps
  subpod ps -a --filter status=exited -q
  subpod ps -a -o json
  subpod ps --format '{{.Names}} {{.Status}}'`,
		Args: exactly(0),
		RunE: a.run(func(cmd *cobra.Command, conn *connection, _ []string) error { return o.run(cmd, conn) }),
	}
	f := cmd.Flags()
	o.out = addFormat(cmd)
	o.out.addGoFormat(cmd, "")
	f.BoolVarP(&o.all, "all", "a", false, "also list containers that are not running")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "IDs only")
	f.StringArrayVarP(&o.filters, "filter", "f", nil, "NAME=VALUE: "+strings.Join(psFilterNames(), ", "))
	f.BoolVar(&o.noTrunc, "no-trunc", false, "show whole IDs and commands")
	f.BoolVar(&o.noHeading, "noheading", false, "leave out the line of titles")
	f.IntVarP(&o.last, "last", "n", -1, "only the last containers that were made, in all states")
	f.BoolVarP(&o.latest, "latest", "l", false, "only the last container that was made, in all states")
	f.BoolVarP(&o.pod, "pod", "p", false, "show pods, too")
	f.BoolVar(&o.sync, "sync", false, "no effect: what is shown is always what there is")
	f.StringVar(&o.sort, "sort", "created", "created, command, id, image, names, runningfor or status")
	addRefused(f, refusedPs)
	return cmd
}

const refusedPodColumns = notYet + "\"subpod ps -p\" lists the containers with their pods"

var refusedPs = refused{
	"external":  notYet + "only containers of this runtime are listed",
	"namespace": notYet + "see \"subpod inspect\"",
	"ns":        notYet + "see \"subpod inspect\"",
	"size/s":    notYet + "see \"subpod stats\"",
	"watch/w":   notYet + "use watch(1), or \"subpod events\"",
}

func (o *psFlags) run(cmd *cobra.Command, conn *connection) error {
	if err := o.out.check(); err != nil {
		return err
	}
	filter, err := parsePsFilters(o.filters)
	if err != nil {
		return err
	}
	if o.latest {
		o.last = 1
	}
	rows, err := containerRows(cmd.Context(), conn.Client, o.all || o.last >= 0 || filter.state)
	if err != nil {
		return err
	}
	if rows, err = filter.apply(rows); err != nil {
		return err
	}
	if o.last >= 0 {
		rows = rows[:min(len(rows), o.last)]
	}
	if err := sortRows(rows, o.sort); err != nil {
		return err
	}
	if o.quiet {
		for _, r := range rows {
			fmt.Fprintln(cmd.OutOrStdout(), o.id(r.ID))
		}
		return nil
	}
	o.out.noHeading = o.noHeading
	return printList(cmd.OutOrStdout(), o.out, rows, o.columns())
}

func (o *psFlags) id(id string) string {
	if o.noTrunc {
		return id
	}
	return shortID(id)
}

func (o *psFlags) columns() []column[containerRow] {
	list := []column[containerRow]{
		{"CONTAINER ID", func(r containerRow) string { return o.id(r.ID) }},
		{"IMAGE", func(r containerRow) string { return r.Image }},
		{"COMMAND", func(r containerRow) string {
			if o.noTrunc {
				return r.Command
			}
			return shorten(r.Command, 24)
		}},
		{"STATUS", containerRow.status},
		{"PORTS", func(r containerRow) string { return strings.Join(r.Ports, ", ") }},
		{"NAME", func(r containerRow) string { return r.Name }},
	}
	if o.pod {
		list = append(list, column[containerRow]{"POD ID", func(r containerRow) string { return o.id(r.PodID) }},
			column[containerRow]{"PODNAME", func(r containerRow) string { return r.Pod }})
	}
	return list
}

func containerRows(ctx context.Context, c *client.Client, all bool) ([]containerRow, error) {
	list, err := c.Containers(ctx)
	if err != nil {
		return nil, err
	}
	var rows []containerRow
	configs := map[string]sandboxConfig{} // of pods
	for _, x := range list {
		if !all && x.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
			continue
		}
		st, err := c.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: x.Id, Verbose: true})
		if client.IsNotFound(err) {
			continue // removed in the meantime
		}
		if err != nil {
			return nil, err
		}
		config, ok := configs[x.PodSandboxId]
		if !ok {
			if config, err = podConfig(ctx, c, x.PodSandboxId); err != nil && !client.IsNotFound(err) {
				return nil, err
			}
			configs[x.PodSandboxId] = config
		}
		var info struct {
			Facts struct {
				Args    []string
				ImageID string `json:"imageId"`
			}
			Health struct{ Status string } `json:"health"`
			Paused bool                    `json:"paused"`
		}
		if err := decodeInfo(st.Info, "container "+x.Id, &info); err != nil {
			return nil, err
		}
		r := newContainerRow(x, st.Status, info.Paused, config.hostPorts())
		r.Networks = config.networks(x.Pod.GetAnnotations())
		r.Command, r.ImageID, r.Health = strings.Join(info.Facts.Args, " "), info.Facts.ImageID, info.Health.Status
		r.Volumes = []string{}
		for _, m := range st.Status.Mounts {
			r.Volumes = append(r.Volumes, m.HostPath)
		}
		rows = append(rows, r)
	}
	slices.SortFunc(rows, func(a, b containerRow) int { return b.Created.Compare(a.Created) })
	return rows, nil
}

func newContainerRow(x client.Container, st *runtimeapi.ContainerStatus, paused bool, ports []string) containerRow {
	r := containerRow{
		Ports: []string{},
		ID:    x.Id, Name: x.Name(), Image: imageName(x.Image), State: stateFor(x, st, paused),
		Created: nanoTime(st.CreatedAt), Started: optionalTime(st.StartedAt), Finished: optionalTime(st.FinishedAt),
		Pod: client.PodName(x.Pod), PodID: x.PodSandboxId, Labels: notNil(x.Labels),
	}
	if r.State == "exited" {
		r.ExitCode = &st.ExitCode
	} else {
		r.Finished = nil
	}
	if st.State == runtimeapi.ContainerState_CONTAINER_RUNNING && len(ports) > 0 {
		r.Ports = ports
	}
	return r
}

// podPorts returns the host ports of a pod, as "0.0.0.0:8080->80/tcp".
func podPorts(ctx context.Context, c *client.Client, id string) ([]string, error) {
	config, err := podConfig(ctx, c, id)
	if err != nil {
		return nil, err
	}
	return config.hostPorts(), nil
}

func (c sandboxConfig) hostPorts() []string {
	out := []string{}
	for _, m := range c.PortMappings {
		if m.HostPort == 0 {
			continue
		}
		ip := m.HostIP
		if ip == "" {
			ip = "*"
		}
		out = append(out, fmt.Sprintf("%s:%d->%d/%s", ip, m.HostPort, m.ContainerPort, strings.ToLower(runtimeapi.Protocol(m.Protocol).String())))
	}
	return out
}

// sandboxConfig is the part of a pod's configuration that its verbose status
// contains.
type sandboxConfig struct {
	LogDirectory string `json:"log_directory"`
	Hostname     string `json:"hostname"`
	PortMappings []struct {
		HostIP        string `json:"host_ip"`
		HostPort      int32  `json:"host_port"`
		ContainerPort int32  `json:"container_port"`
		Protocol      int32  `json:"protocol"`
	} `json:"port_mappings"`
	Linux struct {
		Security struct {
			Namespaces struct {
				Network int32 `json:"network"`
			} `json:"namespace_options"`
		} `json:"security_context"`
	} `json:"linux"`
}

func podConfig(ctx context.Context, c *client.Client, id string) (sandboxConfig, error) {
	var info struct{ Config sandboxConfig }
	st, err := c.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id, Verbose: true})
	if err != nil {
		return info.Config, err
	}
	err = decodeInfo(st.Info, "pod sandbox "+id, &info)
	return info.Config, err
}

func imageName(i *runtimeapi.ImageSpec) string {
	if n := i.GetUserSpecifiedImage(); n != "" {
		return n
	}
	return i.GetImage()
}

// stateFor returns the state of a container as its user knows it: one of "create" whose
// node went before it was started has exited for the CRI, which has no way back from there;
// "subpod start" starts it as before. One that is paused runs, for the CRI.
func stateFor(x client.Container, st *runtimeapi.ContainerStatus, paused bool) string {
	if paused {
		return statePaused
	}
	lost := st.State == runtimeapi.ContainerState_CONTAINER_EXITED && st.StartedAt == 0 && st.Reason == "ContainerStatusUnknown"
	if lost && x.Pod.GetLabels()[api.LabelMadeBy] != "" {
		return stateName(runtimeapi.ContainerState_CONTAINER_CREATED)
	}
	return stateName(st.State)
}

const statePaused = "paused"

func stateName(s runtimeapi.ContainerState) string {
	return strings.ToLower(strings.TrimPrefix(s.String(), "CONTAINER_"))
}

func nanoTime(n int64) time.Time {
	if n == 0 {
		return time.Time{}
	}
	return time.Unix(0, n)
}

// notNil returns a map that templates can index.
func notNil(m map[string]string) map[string]string {
	if m == nil {
		return map[string]string{}
	}
	return m
}

func optionalTime(n int64) *time.Time {
	if n == 0 {
		return nil
	}
	t := nanoTime(n)
	return &t
}

func shorten(s string, n int) string {
	s = strings.Join(strings.Fields(s), " ")
	if r := []rune(s); len(r) > n {
		return string(r[:n-1]) + "…"
	}
	return s
}

// podRow is a row of the output of "pods".
type podRow struct {
	ID         string            `json:"id"`
	Name       string            `json:"name"`
	Namespace  string            `json:"namespace"`
	State      string            `json:"state"`
	Created    time.Time         `json:"created"`
	IPs        []string          `json:"ips"`
	Ports      []string          `json:"ports"`
	Containers []string          `json:"containers"`
	Handler    string            `json:"runtimeHandler"`
	Labels     map[string]string `json:"labels"`
}

// fields implements named, with Podman's names.
func (r podRow) fields() map[string]any {
	return map[string]any{
		"ID": shortID(r.ID), "Id": r.ID, "Status": r.State, "Created": ago(r.Created), "NumberOfContainers": len(r.Containers),
		"ContainerNames": strings.Join(r.Containers, ","),
	}
}

func newPods(a *app) *cobra.Command {
	var quiet, noTrunc bool
	var out *format
	id := func(full string) string {
		if noTrunc {
			return full
		}
		return shortID(full)
	}
	cmd := &cobra.Command{
		Use:     "pods [flags]",
		Short:   "List pod sandboxes",
		Example: "  subpod pods\n  subpod pods -o yaml",
		Args:    exactly(0),
		RunE: a.run(func(cmd *cobra.Command, conn *connection, _ []string) error {
			if err := out.check(); err != nil {
				return err
			}
			rows, err := podRows(cmd.Context(), conn.Client)
			if err != nil {
				return err
			}
			if quiet {
				for _, r := range rows {
					fmt.Fprintln(cmd.OutOrStdout(), r.ID)
				}
				return nil
			}
			return printList(cmd.OutOrStdout(), out, rows, []column[podRow]{
				{"POD ID", func(r podRow) string { return id(r.ID) }},
				{"STATE", func(r podRow) string { return r.State }},
				{"CREATED", func(r podRow) string { return ago(r.Created) }},
				{"CONTAINERS", func(r podRow) string { return fmt.Sprint(len(r.Containers)) }},
				{"IP", func(r podRow) string { return strings.Join(r.IPs, ", ") }},
				{"NAME", func(r podRow) string { return r.Name }},
			})
		}),
	}
	out = addFormat(cmd)
	out.addGoFormat(cmd, "")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "IDs only")
	cmd.Flags().BoolVar(&noTrunc, "no-trunc", false, "show whole IDs")
	cmd.Flags().BoolVarP(&out.noHeading, "noheading", "n", false, "leave out the line of titles")
	addRefused(cmd.Flags(), refused{
		"ctr-ids": refusedPodColumns, "ctr-names": refusedPodColumns, "ctr-status": refusedPodColumns, "namespace": refusedPs["namespace"], "ns": refusedPs["ns"],
		"filter/f": notYet + "use grep, or a template of --format", "latest/l": notYet + "use head(1): the newest is the first", "sort": "the newest is the first; use sort(1)",
	})
	return cmd
}

func podRows(ctx context.Context, c *client.Client) ([]podRow, error) {
	pods, err := c.Pods(ctx)
	if err != nil {
		return nil, err
	}
	var rows []podRow
	for _, p := range pods {
		st, err := c.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.Id})
		if client.IsNotFound(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		r := podRow{
			ID: p.Id, Name: client.PodName(p), Namespace: p.Metadata.GetNamespace(), Created: nanoTime(p.CreatedAt), State: "notready",
			Handler: p.RuntimeHandler, Labels: notNil(p.Labels), IPs: []string{}, Ports: []string{}, Containers: []string{}, // lists, also when empty
		}
		if p.State == runtimeapi.PodSandboxState_SANDBOX_READY {
			r.State = "ready"
		}
		if ip := st.Status.GetNetwork().GetIp(); ip != "" {
			r.IPs = append(r.IPs, ip)
		}
		for _, ip := range st.Status.GetNetwork().GetAdditionalIps() {
			r.IPs = append(r.IPs, ip.Ip)
		}
		for _, x := range st.ContainersStatuses {
			r.Containers = append(r.Containers, x.GetMetadata().GetName())
		}
		if r.Ports, err = podPorts(ctx, c, p.Id); err != nil && !client.IsNotFound(err) {
			return nil, err
		}
		rows = append(rows, r)
	}
	slices.SortFunc(rows, func(a, b podRow) int { return b.Created.Compare(a.Created) })
	return rows, nil
}
