package main

import (
	"encoding/json"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/spf13/pflag"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/api"
)

// networkOptions are the flags of "run" that concern the network and names.
type networkOptions struct {
	network                     string // pod, host or none: of networks, by check
	egress                      string // an api.Egress…; "" is the node's default
	networks, aliases, addHosts []string
	ip, ip6, mac                string
	dns, dnsSearch, dnsOption   []string
	attachments                 []api.PodNetwork
	hosts                       []api.HostNames
}

func (o *networkOptions) addFlags(f *pflag.FlagSet) {
	f.StringArrayVar(&o.networks, "network", nil, "NAME[:ip=…,mac=…,alias=…,interface_name=…] (may be repeated), host (the node's) or none (default: pod)")
	f.StringArrayVar(&o.networks, "net", nil, "the same as --network")
	_ = f.MarkHidden("net")
	f.StringVar(&o.egress, "egress", "", "switched: TCP connections to the outside are made in the host's network, at its speed; uplink: they are not")
	f.StringSliceVar(&o.aliases, "network-alias", nil, "further name in the networks")
	f.StringVar(&o.ip, "ip", "", "IPv4 address")
	f.StringVar(&o.ip6, "ip6", "", "IPv6 address")
	f.StringVar(&o.mac, "mac-address", "", "hardware address")
	f.StringSliceVar(&o.addHosts, "add-host", nil, "HOST[;HOST]:IP for /etc/hosts; the IP host-gateway is the node's")
	f.StringSliceVar(&o.dns, "dns", nil, "DNS server")
	f.StringSliceVar(&o.dnsSearch, "dns-search", nil, "DNS search domain; \".\" for none")
	f.StringSliceVar(&o.dnsOption, "dns-option", nil, "DNS resolver option, such as ndots:2")
	f.StringSliceVar(&o.dnsOption, "dns-opt", nil, "the same as --dns-option")
	_ = f.MarkHidden("dns-opt")
}

// otherModes are networks of podman that there are not, and what is in their place.
var otherModes = map[string]string{
	"container":   "run the containers as one pod instead (subpod play)",
	"ns":          "a pod's namespaces are its own",
	"slirp4netns": "the uplink is the node's, for all pods: node.uplink in the configuration",
	"pasta":       "the uplink is the node's, for all pods: node.uplink in the configuration",
}

// check parses the flags.
func (o *networkOptions) check() error {
	o.network, o.attachments, o.hosts = "pod", nil, nil
	for _, arg := range o.networks {
		if err := o.addNetwork(arg); err != nil {
			return err
		}
	}
	if len(o.attachments) > 0 && o.network != "pod" {
		return usagef("--network %s cannot be combined with other networks", o.network)
	}
	if err := o.addAddresses(); err != nil {
		return err
	}
	switch o.egress {
	case "", api.EgressUplink, api.EgressSwitched:
	default:
		return usagef("invalid --egress %q: expected %s or %s", o.egress, api.EgressSwitched, api.EgressUplink)
	}
	for _, d := range o.dns {
		if _, err := netip.ParseAddr(d); err != nil {
			return usagef("invalid --dns %q: expected an IP address", d)
		}
	}
	for _, h := range o.addHosts {
		host, err := parseHost(h)
		if err != nil {
			return err
		}
		o.hosts = append(o.hosts, host)
	}
	return nil
}

// addNetwork parses NAME[,NAME], or NAME:OPTION=VALUE,...
func (o *networkOptions) addNetwork(arg string) error {
	name, options, has := strings.Cut(arg, ":")
	if why := otherModes[name]; why != "" {
		return usagef("--network %s is not supported: %s", arg, why)
	}
	for one := range strings.SplitSeq(name, ",") {
		switch one {
		case "host", "none":
			if o.network = one; has {
				return usagef("invalid --network %q: %s has no options", arg, one)
			}
		case "pod", "bridge", "default", "private", "podman", "":
			o.attachments = append(o.attachments, api.PodNetwork{Name: api.DefaultNetwork})
		default:
			if !isName(one) {
				return usagef("invalid --network %q: expected pod, host, none or the name of a network", arg)
			}
			o.attachments = append(o.attachments, api.PodNetwork{Name: one})
		}
	}
	if !has {
		return nil
	}
	if strings.Contains(name, ",") {
		return usagef("invalid --network %q: options are those of one network", arg)
	}
	to := &o.attachments[len(o.attachments)-1]
	for option := range strings.SplitSeq(options, ",") {
		key, value, _ := strings.Cut(option, "=")
		switch {
		case value == "":
			return usagef("invalid --network %q: expected OPTION=VALUE, not %q", arg, option)
		case key == "ip" || key == "ip6":
			to.IPs = append(to.IPs, value)
		case key == "mac":
			to.MAC = value
		case key == "alias":
			to.Aliases = append(to.Aliases, value)
		case key == "interface_name":
			to.Interface = value
		default:
			return usagef("invalid --network %q: unknown option %q; expected ip, ip6, mac, alias or interface_name", arg, key)
		}
	}
	return checkAddresses(*to)
}

// addAddresses applies the flags that are about the one network, or all.
func (o *networkOptions) addAddresses() error {
	if o.ip == "" && o.ip6 == "" && o.mac == "" && len(o.aliases) == 0 {
		return nil
	}
	if o.network != "pod" {
		return usagef("--ip, --ip6, --mac-address and --network-alias cannot be combined with --network %s", o.network)
	}
	if len(o.attachments) == 0 {
		o.attachments = []api.PodNetwork{{Name: api.DefaultNetwork}}
	}
	for i := range o.attachments {
		o.attachments[i].Aliases = append(o.attachments[i].Aliases, o.aliases...)
	}
	if o.ip == "" && o.ip6 == "" && o.mac == "" {
		return nil
	}
	if len(o.attachments) > 1 {
		return usagef("--ip, --ip6 and --mac-address are for one network; use --network NAME:ip=…,mac=… for each")
	}
	to := &o.attachments[0]
	for _, ip := range []string{o.ip, o.ip6} {
		if ip != "" {
			to.IPs = append(to.IPs, ip)
		}
	}
	if o.mac != "" {
		to.MAC = o.mac
	}
	return checkAddresses(*to)
}

func checkAddresses(n api.PodNetwork) error {
	for _, ip := range n.IPs {
		if _, err := netip.ParseAddr(ip); err != nil {
			return usagef("invalid address %q: %w", ip, err)
		}
	}
	if n.MAC != "" {
		if _, err := net.ParseMAC(n.MAC); err != nil {
			return usagef("invalid hardware address %q: %w", n.MAC, err)
		}
	}
	return nil
}

// parseHost parses HOST[;HOST]:IP or HOST=IP.
func parseHost(s string) (api.HostNames, error) {
	i := strings.IndexAny(s, ":=")
	if i < 1 {
		return api.HostNames{}, usagef("invalid --add-host %q: expected HOST:IP", s)
	}
	ip := strings.Trim(s[i+1:], "[]")
	if _, err := netip.ParseAddr(ip); err != nil && ip != api.HostGateway {
		return api.HostNames{}, usagef("invalid --add-host %q: %q is not an IP address", s, ip)
	}
	return api.HostNames{IP: ip, Names: strings.Split(s[:i], ";")}, nil
}

// fill adds what was asked for to the pod. Nothing for a pod that is only on the network
// that all pods are on.
func (o *networkOptions) fill(pod *runtimeapi.PodSandboxConfig) error {
	if len(o.dns)+len(o.dnsSearch)+len(o.dnsOption) > 0 {
		pod.DnsConfig = &runtimeapi.DNSConfig{Servers: o.dns, Searches: o.dnsSearch, Options: o.dnsOption}
	}
	plain := func(n api.PodNetwork) bool {
		return n.Name == api.DefaultNetwork && len(n.Aliases)+len(n.IPs) == 0 && n.MAC == "" && n.Interface == ""
	}
	asked := api.PodNetworks{Networks: o.attachments, Hosts: o.hosts}
	if len(asked.Networks) == 1 && slices.ContainsFunc(asked.Networks, plain) {
		asked.Networks = nil
	}
	if len(asked.Networks)+len(asked.Hosts) == 0 {
		return nil
	}
	text, err := json.Marshal(asked)
	pod.Annotations[api.AnnotationNetworks] = string(text)
	return err
}
