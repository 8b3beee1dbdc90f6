package sandbox

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/netns"
	"github.com/subpod/subpod/pkg/api"
)

// networks are the networks and names of a pod that one of subpod's commands has made.
// Others have none.
type networks struct {
	names       []string
	attachments []netns.Attachment
	services    []netns.Service
	resolvers   []netip.Addr // that the pod's own dns_config names
	hosts       []api.HostNames
}

// Bounds of what one pod may ask for.
const (
	maxAttachments = 16
	maxPodNames    = 256
)

// parseNetworks parses api.AnnotationNetworks. Pods of subpod's commands find each other
// by their names and host names; those of a kubelet have their cluster's names.
func parseNetworks(cfg *runtimeapi.PodSandboxConfig) (networks, error) {
	var n networks
	switch cfg.Labels[api.LabelMadeBy] {
	case api.MadeByRun, api.MadeByPlay:
	default:
		return n, nil
	}
	var asked api.PodNetworks
	if text := cfg.Annotations[api.AnnotationNetworks]; text != "" {
		if err := json.Unmarshal([]byte(text), &asked); err != nil {
			return n, invalid("annotation %s: %w", api.AnnotationNetworks, err)
		}
	}
	n.hosts = asked.Hosts
	for _, h := range asked.Hosts {
		if _, err := netip.ParseAddr(h.IP); err != nil && h.IP != api.HostGateway {
			return n, invalid("the host name %v has the address %q", h.Names, h.IP)
		}
		if problem := nameProblem(h.Names); problem != "" {
			return n, invalid("a line of hosts: %s", problem)
		}
	}
	n.names = append([]string{cfg.Metadata.GetName()}, asked.Names...)
	if cfg.Hostname != "" && !slices.Contains(n.names, cfg.Hostname) {
		n.names = append(n.names, cfg.Hostname)
	}
	all := slices.Clone(n.names)
	for _, a := range asked.Networks {
		one, err := parseAttachment(a)
		if err != nil {
			return n, err
		}
		n.attachments = append(n.attachments, one)
		all = append(all, a.Aliases...)
	}
	for _, s := range asked.Services {
		one := netns.Service{Names: s.Names}
		for _, p := range s.Ports {
			one.Ports = append(one.Ports, netns.ServicePort{Proto: p.Protocol, Port: uint16(p.Port), TargetPort: uint16(p.TargetPort)})
		}
		n.services = append(n.services, one)
		all = append(all, s.Names...)
	}
	if problem := nameProblem(all); problem != "" {
		return n, invalid("network: %s", problem)
	}
	if len(n.attachments) > maxAttachments || len(all) > maxPodNames {
		return n, invalid("the pod has %d networks and %d names; at most %d and %d", len(n.attachments), len(all), maxAttachments, maxPodNames)
	}
	for _, s := range cfg.GetDnsConfig().GetServers() {
		if a, err := netip.ParseAddr(s); err == nil {
			n.resolvers = append(n.resolvers, a)
		}
	}
	return n, nil
}

func parseAttachment(a api.PodNetwork) (netns.Attachment, error) {
	out := netns.Attachment{Network: a.Name, Aliases: a.Aliases, Interface: a.Interface}
	for _, ip := range a.IPs {
		addr, err := netip.ParseAddr(ip)
		if err != nil {
			return out, invalid("network %s: %q is not an address", a.Name, ip)
		}
		out.Addresses = append(out.Addresses, addr.Unmap())
	}
	if a.MAC != "" {
		var err error
		if out.MAC, err = net.ParseMAC(a.MAC); err != nil {
			return out, invalid("network %s: %w", a.Name, err)
		}
	}
	if a.Interface != "" && (len(a.Interface) > 15 || strings.ContainsAny(a.Interface, "/: \t\n") || a.Interface == "lo" || strings.Trim(a.Interface, ".") == "") {
		return out, invalid("network %s: %q cannot be the name of an interface", a.Name, a.Interface)
	}
	return out, nil
}

// nameProblem says what cannot be looked up; "" when all can.
func nameProblem(names []string) string {
	for _, name := range names {
		if name == "" || len(name) > 253 || strings.ContainsAny(name, " \t\r\n\x00#") {
			return fmt.Sprintf("%q cannot be a host name", name)
		}
	}
	return ""
}

// enter tells the network of them.
func (n networks) enter(pod *netns.Pod) {
	pod.Names, pod.Attachments, pod.Services, pod.Resolvers = n.names, n.attachments, n.services, n.resolvers
}

// writeNames writes resolv.conf and hosts of a pod that is on the network.
func (b *Builder) writeNames(dir string, plan Plan, network *netns.Result) error {
	if err := writeHosts(dir, plan, network); err != nil {
		return err
	}
	// One that names servers asks them, unless it is in a network whose names only the
	// name server knows: that asks them in turn.
	if len(network.Nameservers) == 0 || len(plan.names.resolvers) > 0 && len(plan.names.attachments) == 0 {
		return nil
	}
	resolv, err := b.DNS.withServers(network.Nameservers, api.NetworkDomain, plan.Config.DnsConfig)
	if err != nil {
		return err
	}
	return writeFile(filepath.Join(dir, etcDir, "resolv.conf"), resolv)
}

// appendHosts adds the lines that the pod's maker wants.
func (n networks) appendHosts(text []byte, network *netns.Result) []byte {
	for _, h := range n.hosts {
		ip := h.IP
		if ip == api.HostGateway {
			if network == nil || len(network.Gateways) == 0 {
				continue
			}
			ip = network.Gateways[0].String()
		}
		text = fmt.Appendf(text, "%s\t%s\n", ip, strings.Join(h.Names, " "))
	}
	return text
}

// allIPs returns the addresses of all links of the pod.
func allIPs(network *netns.Result) []netip.Addr {
	out := slices.Clone(network.IPs)
	for _, l := range network.Others {
		out = append(out, l.IPs...)
	}
	return out
}
