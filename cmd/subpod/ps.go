package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

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
}

func (r containerRow) status() string {
	switch {
	case r.State == "exited" && r.Finished != nil:
		return fmt.Sprintf("Exited (%d) %s", *r.ExitCode, ago(*r.Finished))
	case r.State == "running" && r.Started != nil:
		return "Up " + duration(time.Since(*r.Started))
	}
	return strings.ToUpper(r.State[:1]) + r.State[1:]
}

func newPs(a *app) *cobra.Command {
	var all, quiet bool
	var out *format
	cmd := &cobra.Command{
		Use:   "ps [flags]",
		Short: "List containers",
		Example: `  subpod ps
  subpod ps -a -o json
  subpod ps -o 'go-template={{.name}} {{.image}}'`,
		Args: exactly(0),
		RunE: a.run(func(cmd *cobra.Command, conn *connection, _ []string) error {
			if err := out.check(); err != nil {
				return err
			}
			rows, err := containerRows(cmd.Context(), conn.Client, all)
			if err != nil {
				return err
			}
			if quiet {
				for _, r := range rows {
					fmt.Fprintln(cmd.OutOrStdout(), r.ID)
				}
				return nil
			}
			return printList(cmd.OutOrStdout(), out, rows, []column[containerRow]{
				{"CONTAINER ID", func(r containerRow) string { return shortID(r.ID) }},
				{"IMAGE", func(r containerRow) string { return r.Image }},
				{"COMMAND", func(r containerRow) string { return shorten(r.Command, 24) }},
				{"STATUS", containerRow.status},
				{"PORTS", func(r containerRow) string { return strings.Join(r.Ports, ", ") }},
				{"NAME", func(r containerRow) string { return r.Name }},
			})
		}),
	}
	out = addFormat(cmd)
	cmd.Flags().BoolVarP(&all, "all", "a", false, "also list containers that are not running")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "IDs only")
	return cmd
}

func containerRows(ctx context.Context, c *client.Client, all bool) ([]containerRow, error) {
	list, err := c.Containers(ctx)
	if err != nil {
		return nil, err
	}
	var rows []containerRow
	ports := map[string][]string{}
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
		if _, ok := ports[x.PodSandboxId]; !ok {
			if ports[x.PodSandboxId], err = podPorts(ctx, c, x.PodSandboxId); err != nil && !client.IsNotFound(err) {
				return nil, err
			}
		}
		var info struct{ Facts struct{ Args []string } }
		if err := decodeInfo(st.Info, "container "+x.Id, &info); err != nil {
			return nil, err
		}
		r := newContainerRow(x, st.Status, ports[x.PodSandboxId])
		r.Command = strings.Join(info.Facts.Args, " ")
		rows = append(rows, r)
	}
	slices.SortFunc(rows, func(a, b containerRow) int { return b.Created.Compare(a.Created) })
	return rows, nil
}

func newContainerRow(x client.Container, st *runtimeapi.ContainerStatus, ports []string) containerRow {
	r := containerRow{
		ID: x.Id, Name: x.Name(), Image: imageName(x.Image), State: stateName(st.State),
		Created: nanoTime(st.CreatedAt), Started: optionalTime(st.StartedAt), Finished: optionalTime(st.FinishedAt),
		Pod: client.PodName(x.Pod), PodID: x.PodSandboxId, Labels: notNil(x.Labels),
	}
	if st.State == runtimeapi.ContainerState_CONTAINER_EXITED {
		r.ExitCode = &st.ExitCode
	}
	if st.State == runtimeapi.ContainerState_CONTAINER_RUNNING {
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
	var out []string
	for _, m := range config.PortMappings {
		if m.HostPort == 0 {
			continue
		}
		ip := m.HostIP
		if ip == "" {
			ip = "*"
		}
		out = append(out, fmt.Sprintf("%s:%d->%d/%s", ip, m.HostPort, m.ContainerPort, strings.ToLower(runtimeapi.Protocol(m.Protocol).String())))
	}
	return out, nil
}

// sandboxConfig is the part of a pod's configuration that its verbose status
// contains.
type sandboxConfig struct {
	LogDirectory string `json:"log_directory"`
	PortMappings []struct {
		HostIP        string `json:"host_ip"`
		HostPort      int32  `json:"host_port"`
		ContainerPort int32  `json:"container_port"`
		Protocol      int32  `json:"protocol"`
	} `json:"port_mappings"`
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

func newPods(a *app) *cobra.Command {
	var quiet bool
	var out *format
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
				{"POD ID", func(r podRow) string { return shortID(r.ID) }},
				{"STATE", func(r podRow) string { return r.State }},
				{"CREATED", func(r podRow) string { return ago(r.Created) }},
				{"CONTAINERS", func(r podRow) string { return fmt.Sprint(len(r.Containers)) }},
				{"IP", func(r podRow) string { return strings.Join(r.IPs, ", ") }},
				{"NAME", func(r podRow) string { return r.Name }},
			})
		}),
	}
	out = addFormat(cmd)
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "IDs only")
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
			Handler: p.RuntimeHandler, Labels: notNil(p.Labels), IPs: []string{}, Containers: []string{}, // lists, also when empty
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
