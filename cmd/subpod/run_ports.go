package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
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

// maxExposed bounds how many ports an image can have published: it takes them from those
// that all programs of the host share.
const maxExposed = 1024

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
	var asked []*runtimeapi.PortMapping
	for _, p := range o.expose {
		list, err := exposedPorts(p)
		if err != nil {
			return usagef("invalid --expose %q: %w", p, err)
		}
		asked = append(asked, list...)
	}
	images := 0
	for _, p := range slices.Sorted(maps.Keys(config.ExposedPorts)) {
		list, err := exposedPorts(p)
		if err == nil {
			if images += len(list); images > maxExposed {
				err = fmt.Errorf("these are more than %d ports; publish with -p those that you need", maxExposed)
			}
		}
		if err != nil {
			return fmt.Errorf("--publish-all: image %s exposes %q: %w", image, p, err)
		}
		asked = append(asked, list...)
	}
	return publish(pod, asked)
}

// exposedPorts parses PORT[-PORT][/PROTOCOL]. Ports of the host are not in it: which ones
// those are is no choice of an image.
func exposedPorts(s string) ([]*runtimeapi.PortMapping, error) {
	ports, name, _ := strings.Cut(s, "/")
	proto, ok := portProtocol(name)
	inside, err := parseRange(ports)
	if !ok || err != nil || inside.count == 0 {
		return nil, errors.New("expected PORT[-PORT][/tcp|/udp]")
	}
	var out []*runtimeapi.PortMapping
	for i := range inside.count {
		out = append(out, &runtimeapi.PortMapping{Protocol: proto, ContainerPort: int32(inside.first + i)})
	}
	return out, nil
}

// publish adds mappings, with free ports of the host, unless the pod has such.
func publish(pod *runtimeapi.PodSandboxConfig, asked []*runtimeapi.PortMapping) error {
	type port struct {
		inside   int32
		protocol runtimeapi.Protocol
	}
	has := map[port]bool{}
	for _, m := range pod.PortMappings {
		has[port{m.ContainerPort, m.Protocol}] = true
	}
	var missing []*runtimeapi.PortMapping
	for _, m := range asked {
		if p := (port{m.ContainerPort, m.Protocol}); !has[p] {
			has[p] = true
			missing = append(missing, m)
		}
	}
	pod.PortMappings = append(pod.PortMappings, missing...)
	return chooseHostPorts(missing)
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
	var ok bool
	if base.Protocol, ok = portProtocol(proto); !ok {
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
		out = append(out, &runtimeapi.PortMapping{HostIp: base.HostIp, Protocol: base.Protocol, ContainerPort: int32(inside.first + i), HostPort: int32(outside.first + i)})
	}
	if outside.count > 0 {
		return out, nil
	}
	return out, chooseHostPorts(out)
}

func portProtocol(name string) (runtimeapi.Protocol, bool) {
	switch strings.ToLower(name) {
	case "", "tcp":
		return runtimeapi.Protocol_TCP, true
	case "udp":
		return runtimeapi.Protocol_UDP, true
	}
	return 0, false
}

// chooseHostPorts gives each mapping a host port that is not in use.
func chooseHostPorts(list []*runtimeapi.PortMapping) (err error) {
	var held []io.Closer // until all are chosen, so that none is chosen twice
	defer func() {
		for _, c := range held {
			_ = c.Close()
		}
	}()
	for _, m := range list {
		var c io.Closer
		if m.HostPort, c, err = freePort(m.Protocol); err != nil {
			return fmt.Errorf("find a free port of the host: %w", err)
		}
		held = append(held, c)
	}
	return nil
}

// freePort returns a host port that is not in use, and what holds it.
func freePort(proto runtimeapi.Protocol) (int32, io.Closer, error) {
	if proto == runtimeapi.Protocol_UDP {
		c, err := net.ListenPacket("udp", ":0")
		if err != nil {
			return 0, nil, err
		}
		return int32(c.LocalAddr().(*net.UDPAddr).Port), c, nil
	}
	l, err := net.Listen("tcp", ":0")
	if err != nil {
		return 0, nil, err
	}
	return int32(l.Addr().(*net.TCPAddr).Port), l, nil
}
