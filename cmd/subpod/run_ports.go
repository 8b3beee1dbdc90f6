package main

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/client"
)

func (o *runOptions) fillPorts(pod *runtimeapi.PodSandboxConfig) error {
	for _, p := range o.ports {
		list, err := parsePorts(p)
		if err != nil {
			return err
		}
		pod.PortMappings = append(pod.PortMappings, list...)
	}
	return nil
}

// publishExposed adds mappings of free host ports for what the image and --expose
// name, unless -p maps these already.
func (o *moreOptions) publishExposed(ctx context.Context, c *client.Client, image string, pod *runtimeapi.PodSandboxConfig) error {
	info, err := imageInfo(ctx, c, image)
	if err != nil {
		return err
	}
	var config struct{ ExposedPorts map[string]struct{} }
	if len(info.ImageSpec.Config) > 0 {
		if err := json.Unmarshal(info.ImageSpec.Config, &config); err != nil {
			return fmt.Errorf("decode the configuration of image %s: %w", image, err)
		}
	}
	for _, p := range slices.Concat(o.expose, slices.Sorted(maps.Keys(config.ExposedPorts))) {
		list, err := parsePorts(p)
		if err != nil {
			return err
		}
		for _, m := range list {
			has := func(old *runtimeapi.PortMapping) bool {
				return old.ContainerPort == m.ContainerPort && old.Protocol == m.Protocol
			}
			if !slices.ContainsFunc(pod.PortMappings, has) {
				pod.PortMappings = append(pod.PortMappings, m)
			}
		}
	}
	return nil
}

// portRange is a range of ports; count is 0 where none is named.
type portRange struct{ first, count int }

func parseRange(s string) (portRange, error) {
	if s == "" {
		return portRange{}, nil
	}
	from, to, ranged := strings.Cut(s, "-")
	if !ranged {
		to = from
	}
	first, err := strconv.ParseUint(from, 10, 16)
	last, lastErr := strconv.ParseUint(to, 10, 16)
	if err != nil || lastErr != nil || first == 0 || last < first {
		return portRange{}, fmt.Errorf("%q is not a port or a range of ports", s)
	}
	return portRange{int(first), int(last-first) + 1}, nil
}

// parsePorts parses [[HOST_IP:]HOST_PORT:]CONTAINER_PORT[/PROTOCOL]; both ports may be
// ranges of the same length.
func parsePorts(s string) ([]*runtimeapi.PortMapping, error) {
	bad := func(why string) error {
		return usagef("invalid -p %q: %s; expected [[HOST_IP:]HOST_PORT:]CONTAINER_PORT[/udp]", s, why)
	}
	base := runtimeapi.PortMapping{}
	rest, proto, _ := strings.Cut(s, "/")
	switch strings.ToLower(proto) {
	case "", "tcp":
	case "udp":
		base.Protocol = runtimeapi.Protocol_UDP
	default:
		return nil, bad("the protocol must be tcp or udp")
	}
	var host string
	if i := strings.LastIndexByte(rest, ':'); i >= 0 {
		host, rest = rest[:i], rest[i+1:]
	}
	if i := strings.LastIndexByte(host, ':'); i >= 0 {
		base.HostIp, host = strings.Trim(host[:i], "[]"), host[i+1:]
		if base.HostIp != "" && net.ParseIP(base.HostIp) == nil {
			return nil, bad(fmt.Sprintf("%q is not an IP address", base.HostIp))
		}
	}
	inside, err := parseRange(rest)
	if err != nil || inside.count == 0 {
		return nil, bad(fmt.Sprintf("%q is not a port or a range of ports", rest))
	}
	outside, err := parseRange(host)
	if err != nil {
		return nil, bad(err.Error())
	}
	if outside.count != 0 && outside.count != inside.count {
		return nil, bad(fmt.Sprintf("%d ports of the host for %d of the container", outside.count, inside.count))
	}
	var out []*runtimeapi.PortMapping
	for i := range inside.count {
		m := &runtimeapi.PortMapping{HostIp: base.HostIp, Protocol: base.Protocol, ContainerPort: int32(inside.first + i), HostPort: int32(outside.first + i)}
		if outside.count == 0 {
			if m.HostPort, err = freePort(m.Protocol); err != nil {
				return nil, err
			}
		}
		out = append(out, m)
	}
	return out, nil
}

// freePort returns a host port that is not in use.
func freePort(proto runtimeapi.Protocol) (int32, error) {
	if proto == runtimeapi.Protocol_UDP {
		c, err := net.ListenPacket("udp", ":0")
		if err != nil {
			return 0, fmt.Errorf("find a free port: %w", err)
		}
		defer c.Close()
		return int32(c.LocalAddr().(*net.UDPAddr).Port), nil
	}
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		return 0, fmt.Errorf("find a free port: %w", err)
	}
	defer l.Close()
	return int32(l.Addr().(*net.TCPAddr).Port), nil
}
