package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/subpod/subpod/pkg/api"
	"github.com/subpod/subpod/pkg/client"
)

func newNetwork(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "network",
		Short: "Manage networks",
		Long: `Pods of one network reach each other, by name as well; pods of different networks do
not, unless by published ports. A pod without --network is on the network "pod".`,
		Example: `  subpod network create backend
  subpod run -d --name db --network backend postgres
  subpod run --rm --network backend busybox ping -c 1 db`,
		Args: none(),
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newNetworkCreate(a), newNetworkList(a), newNetworkRemove(a), newNetworkInspect(a), newNetworkPrune(a),
		newNetworkExists(a), notConnecting("connect"), notConnecting("disconnect"))
	return cmd
}

// notConnecting is a command that says that it cannot.
func notConnecting(name string) *cobra.Command {
	return &cobra.Command{
		Use:   name + " NETWORK CONTAINER",
		Short: "Not supported: the networks of a pod are fixed when it is made",
		RunE: func(*cobra.Command, []string) error {
			return usagef("network %s is refused: the networks of a pod are fixed when it is made; remove it and run it again with --network, which may be repeated", name)
		},
		DisableFlagParsing: true, Hidden: true,
	}
}

func newNetworkCreate(a *app) *cobra.Command {
	o := &networkCreate{}
	cmd := &cobra.Command{
		Use:     "create [flags] [NAME]",
		Short:   "Create a network",
		Long:    "Creates a network and prints its name. Without --subnet it gets one that is free.",
		Example: "  subpod network create backend\n  subpod network create --subnet 10.5.0.0/24 --ipv6 --internal db",
		Args:    between(0, 1),
		RunE: a.runStarting(func(cmd *cobra.Command, conn *connection, args []string) error {
			n, err := o.network(args)
			if err != nil {
				return err
			}
			made, err := conn.Networks().Create(cmd.Context(), n)
			if err != nil && o.ignore && isExisting(cmd.Context(), conn.Client, n.Name) {
				fmt.Fprintln(cmd.OutOrStdout(), n.Name)
				return nil
			}
			if err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), made.Name)
			return nil
		}),
	}
	f := cmd.Flags()
	f.StringArrayVar(&o.subnets, "subnet", nil, "subnet, at most one per family")
	f.StringArrayVar(&o.gateways, "gateway", nil, "the node's address; only the first of the subnet")
	f.StringVar(&o.ipRange, "ip-range", "", "part of the IPv4 subnet for pods that choose no address")
	f.BoolVar(&o.internal, "internal", false, "no way to other networks")
	f.BoolVar(&o.ipv6, "ipv6", false, "an IPv6 subnet as well")
	f.BoolVar(&o.noDNS, "disable-dns", false, "no names of containers")
	f.StringArrayVar(&o.dns, "dns", nil, "DNS server for all other names")
	f.StringVarP(&o.driver, "driver", "d", "bridge", "only bridge")
	f.StringVar(&o.ipam, "ipam-driver", "host-local", "only host-local")
	f.StringArrayVarP(&o.options, "opt", "o", nil, "mtu=BYTES or isolate=true")
	f.StringArrayVar(&o.labels, "label", nil, "label as NAME=VALUE")
	f.BoolVar(&o.ignore, "ignore", false, "succeed if there is one of the name")
	addRefused(f, refused{
		"interface-name": "the bridges are the server's, and named by it",
		"route":          "a network leads to the uplink alone",
	})
	return cmd
}

// networkCreate are the flags of "network create".
type networkCreate struct {
	subnets, gateways, dns, options, labels []string
	ipRange, driver, ipam                   string
	internal, ipv6, noDNS, ignore           bool
}

func (o *networkCreate) network(args []string) (api.Network, error) {
	n := api.Network{Name: "network-" + randomHex(3), Internal: o.internal, IPv6: o.ipv6, DNS: !o.noDNS, Resolvers: o.dns,
		Labels: map[string]string{}, Options: map[string]string{}}
	if len(args) > 0 {
		n.Name = args[0]
	}
	switch {
	case !isName(n.Name):
		return n, usagef("invalid name %q: expected at most 63 letters, digits, '_', '.' and '-', beginning with a letter or digit", n.Name)
	case o.driver != "bridge":
		return n, usagef("--driver %s is not supported: without root there are bridges only", o.driver)
	case o.ipam != "host-local":
		return n, usagef("--ipam-driver %s is not supported: addresses are given out by the server", o.ipam)
	case len(o.gateways) > len(o.subnets) || o.ipRange != "" && len(o.subnets) == 0:
		return n, usagef("--gateway and --ip-range need a --subnet")
	case len(o.subnets) > 2:
		return n, usagef("--subnet: at most one of IPv4 and one of IPv6")
	}
	for i, s := range o.subnets {
		sub := api.NetworkSubnet{Subnet: s}
		if i < len(o.gateways) {
			sub.Gateway = o.gateways[i]
		}
		if !strings.Contains(s, ":") {
			sub.Range = o.ipRange
		}
		n.Subnets = append(n.Subnets, sub)
	}
	for _, l := range o.labels {
		name, value, _ := strings.Cut(l, "=")
		n.Labels[name] = value
	}
	for _, opt := range o.options {
		key, value, _ := strings.Cut(opt, "=")
		switch key {
		case "mtu", "com.docker.network.driver.mtu":
			if _, err := fmt.Sscanf(value, "%d", &n.MTU); err != nil {
				return n, usagef("invalid --opt %q: expected a number of bytes", opt)
			}
		case "isolate":
			if value == "false" {
				return n, usagef("--opt isolate=false is not supported: networks are always isolated from each other")
			}
		default:
			return n, usagef("--opt %s is not supported; expected mtu or isolate", key)
		}
		n.Options[key] = value
	}
	return n, nil
}

func isExisting(ctx context.Context, c *client.Client, name string) bool {
	_, err := findNetwork(ctx, c, name)
	return err == nil
}

// findNetwork returns the network with a name or the beginning of an ID.
func findNetwork(ctx context.Context, c *client.Client, ref string) (api.Network, error) {
	all, err := c.Networks().List(ctx)
	if err != nil {
		return api.Network{}, err
	}
	for _, n := range all {
		if n.Name == ref {
			return n, nil
		}
	}
	var found []api.Network
	for _, n := range all {
		if ref != "" && strings.HasPrefix(n.ID, ref) {
			found = append(found, n)
		}
	}
	if len(found) != 1 {
		return api.Network{}, fmt.Errorf("%w: network %s", client.ErrNotFound, ref)
	}
	return found[0], nil
}

func newNetworkList(a *app) *cobra.Command {
	var quiet, noHeading, noTrunc bool
	var filters []string
	var out *format
	cmd := &cobra.Command{
		Use: "ls [flags]", Aliases: []string{"list"},
		Short:   "List networks",
		Example: "  subpod network ls\n  subpod network ls --filter label=tier=db -q\n  subpod network ls -o json",
		Args:    none(),
		RunE: a.run(func(cmd *cobra.Command, conn *connection, _ []string) error {
			if err := out.check(); err != nil {
				return err
			}
			all, err := conn.Networks().List(cmd.Context())
			if err == nil {
				all, err = filterNetworks(all, filters)
			}
			if err != nil {
				return err
			}
			if quiet {
				for _, n := range all {
					fmt.Fprintln(cmd.OutOrStdout(), n.Name)
				}
				return nil
			}
			out.noHeading = noHeading
			return printList(cmd.OutOrStdout(), out, networkRows(all), []column[networkRow]{
				{"NETWORK ID", func(n networkRow) string {
					if noTrunc {
						return n.ID
					}
					return shortID(n.ID)
				}},
				{"NAME", func(n networkRow) string { return n.Name }},
				{"DRIVER", func(networkRow) string { return "bridge" }},
				{"SUBNETS", func(n networkRow) string {
					var all []string
					for _, s := range n.Subnets {
						all = append(all, s.Subnet)
					}
					return strings.Join(all, ", ")
				}},
			})
		}),
	}
	out = addFormat(cmd)
	out.addGoFormat(cmd, "")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "names only")
	cmd.Flags().BoolVarP(&noHeading, "noheading", "n", false, "leave out the line of titles")
	cmd.Flags().BoolVar(&noTrunc, "no-trunc", false, "show whole IDs")
	cmd.Flags().StringArrayVarP(&filters, "filter", "f", nil, "NAME=VALUE: dangling, driver, id, label, name, until")
	return cmd
}

// networkRow is a network with the fields that Podman has.
type networkRow struct{ api.Network }

func (r networkRow) fields() map[string]any {
	var subnets []map[string]any
	for _, s := range r.Subnets {
		subnets = append(subnets, map[string]any{"Subnet": s.Subnet, "Gateway": s.Gateway})
	}
	return map[string]any{
		"ID": r.ID, "Id": r.ID, "Driver": "bridge", "Scope": "local", "Labels": notNil(r.Labels), "Options": notNil(r.Options), "NetworkInterface": r.Interface,
		"Subnets": subnets, "IPAM": map[string]any{"Driver": "host-local", "Config": subnets}, "IPAMOptions": map[string]string{"driver": "host-local"},
		"IPv6Enabled": r.IPv6, "EnableIPv6": r.IPv6, "DNSEnabled": r.DNS, "NetworkDNSServers": r.Resolvers,
	}
}

func networkRows(all []api.Network) []networkRow {
	rows := make([]networkRow, 0, len(all))
	for _, n := range all {
		rows = append(rows, networkRow{n})
	}
	return rows
}

// filterNetworks returns the networks for which all filters hold.
func filterNetworks(list []api.Network, filters []string) ([]api.Network, error) {
	return filtered(list, filters, "dangling, driver, id, label, name, until", func(text, name, value string) (func(api.Network) bool, error) {
		switch name {
		case "name":
			pattern, err := filterPattern(text, value)
			return func(n api.Network) bool { return pattern.MatchString(n.Name) }, err
		case "id":
			return func(n api.Network) bool { return strings.HasPrefix(n.ID, value) }, nil
		case "driver":
			return func(api.Network) bool { return value == "bridge" }, nil
		case "label":
			return func(n api.Network) bool { return hasLabel(n.Labels, value) }, nil
		case "label!":
			return func(n api.Network) bool { return !hasLabel(n.Labels, value) }, nil
		case "dangling":
			yes, err := filterBool(text, value)
			return func(n api.Network) bool { return (len(n.Pods) == 0 && n.Name != api.DefaultNetwork) == yes }, err
		case "until":
			at, err := parseTime("--filter until", value, time.Now())
			return func(n api.Network) bool { return n.Created.Before(at) }, err
		}
		return nil, nil
	})
}

func newNetworkRemove(a *app) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use: "rm [flags] NETWORK...", Aliases: []string{"remove"},
		Short: "Remove networks",
		Long:  "Removes networks that no pod is connected to. With -f the pods are stopped and removed first.",
		Args:  atLeast(1),
		RunE: a.run(func(cmd *cobra.Command, conn *connection, args []string) error {
			return each(args, func(ref string) error {
				n, err := findNetwork(cmd.Context(), conn.Client, ref)
				if err != nil && force {
					return nil
				}
				if err != nil {
					return err
				}
				for _, id := range n.Pods {
					if !force {
						break
					}
					if err := remove(cmd.Context(), conn, id, true); err != nil && !client.IsNotFound(err) && !errors.Is(err, client.ErrNotFound) {
						return err
					}
				}
				if err := conn.Networks().Remove(cmd.Context(), n.Name); err != nil {
					return err
				}
				fmt.Fprintln(cmd.OutOrStdout(), n.Name)
				return nil
			})
		}),
		ValidArgsFunction: a.completeNetworks,
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "remove its pods first; no error if there is no such network")
	addRefused(cmd.Flags(), refused{"time/t": "pods have a grace period of their own"})
	return cmd
}

func newNetworkInspect(a *app) *cobra.Command {
	out := &format{value: "json"}
	cmd := &cobra.Command{
		Use:   "inspect NETWORK...",
		Short: "Show networks as JSON",
		Args:  atLeast(1),
		RunE: a.run(func(cmd *cobra.Command, conn *connection, args []string) error {
			if err := out.check(); err != nil {
				return err
			}
			found := []api.Network{}
			err := each(args, func(ref string) error {
				n, err := findNetwork(cmd.Context(), conn.Client, ref)
				if err == nil {
					found = append(found, n)
				}
				return err
			})
			return errors.Join(printList(cmd.OutOrStdout(), out, networkRows(found), nil), err)
		}),
		ValidArgsFunction: a.completeNetworks,
	}
	out.addGoFormat(cmd, "f")
	return cmd
}

func newNetworkPrune(a *app) *cobra.Command {
	var force bool
	var filters []string
	cmd := &cobra.Command{
		Use:   "prune [flags]",
		Short: "Remove the networks that no pod is connected to",
		Args:  none(),
		RunE: a.run(func(cmd *cobra.Command, conn *connection, _ []string) error {
			if err := confirm(cmd, force, "Remove all networks that no pod is connected to?"); err != nil {
				return err
			}
			all, err := conn.Networks().List(cmd.Context())
			if err == nil {
				all, err = filterNetworks(all, filters)
			}
			if err != nil {
				return err
			}
			all = slices.DeleteFunc(all, func(n api.Network) bool { return n.Name == api.DefaultNetwork || len(n.Pods) > 0 })
			var names []string
			for _, n := range all {
				names = append(names, n.Name)
			}
			return each(names, func(name string) error {
				if err := conn.Networks().Remove(cmd.Context(), name); err != nil {
					return err
				}
				fmt.Fprintln(cmd.OutOrStdout(), name)
				return nil
			})
		}),
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "do not ask")
	cmd.Flags().StringArrayVar(&filters, "filter", nil, "only those for which NAME=VALUE holds, as of \"network ls\"")
	return cmd
}

func newNetworkExists(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "exists NETWORK",
		Short: "Exit with 0 if there is such a network, with 1 if not",
		Args:  exactly(1),
		RunE: a.run(func(cmd *cobra.Command, conn *connection, args []string) error {
			if _, err := findNetwork(cmd.Context(), conn.Client, args[0]); err != nil {
				return exitStatus(1)
			}
			return nil
		}),
		ValidArgsFunction: a.completeNetworks,
	}
}

func (a *app) completeNetworks(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	return a.complete(cmd, func(conn *connection) ([]string, error) {
		all, err := conn.Networks().List(cmd.Context())
		var names []string
		for _, n := range all {
			names = append(names, n.Name)
		}
		return names, err
	})
}
