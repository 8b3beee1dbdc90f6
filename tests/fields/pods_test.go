package fields

import (
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/tests/node"
)

func (p *pod) status() *runtimeapi.PodSandboxStatus {
	p.Helper()
	resp, err := p.cri.PodSandboxStatus(p.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.id})
	p.must(err)
	return resp.Status
}

func TestPodSandbox(t *testing.T) {
	start(t, nil, func(e env) {
		odd := map[string]string{
			"io.kubernetes/x": "as it is", "empty": "", "": "no key", "unicode": "ß → 你好\n\ttab", "run.oci.keep_original_groups": "1",
			"long": strings.Repeat("x", 100_000),
		}
		p := e.pod("fields", func(c *podConfig) {
			c.Annotations, c.Labels = odd, map[string]string{"app": "fields", "odd": "ß\n"}
			c.Hostname = "pod-host"
			c.DnsConfig = &runtimeapi.DNSConfig{
				Servers: []string{"10.1.2.3", "fd00::53"}, Searches: []string{"a.example", "b.example"}, Options: []string{"ndots:5", "edns0"},
			}
			c.Linux.Sysctls = map[string]string{
				"kernel.shm_rmid_forced": "1", "net.ipv4.ip_local_port_range": "20000\t21000", "net.ipv4.ping_group_range": "0 1000", "kernel/msgmax": "9000",
			}
		})
		c := p.start("c", idle(), func(c *ctrConfig) { c.Annotations, c.Labels = odd, map[string]string{"c": "ß\n"} })
		s := p.status()
		if !proto.Equal(&runtimeapi.PodSandboxConfig{Annotations: s.Annotations, Labels: s.Labels, Metadata: s.Metadata},
			&runtimeapi.PodSandboxConfig{Annotations: p.config.Annotations, Labels: p.config.Labels, Metadata: p.config.Metadata}) {
			e.Error("annotations, labels or metadata of the pod are not as in the request")
		}
		cs := c.status()
		if !proto.Equal(&ctrConfig{Annotations: cs.Annotations, Labels: cs.Labels, Metadata: cs.Metadata},
			&ctrConfig{Annotations: c.config.Annotations, Labels: c.config.Labels, Metadata: c.config.Metadata}) {
			e.Error("annotations, labels or metadata of the container are not as in the request")
		}
		e.equal("runtime handler in the status", s.RuntimeHandler, e.handler)
		e.equal("hostname", c.exec("hostname"), "pod-host")
		e.equal("/etc/hostname", c.exec("cat", "/etc/hostname"), "pod-host")
		e.contains("/etc/hosts", c.exec("cat", "/etc/hosts"), "127.0.0.1\tlocalhost", s.Network.Ip+"\tpod-host")
		e.equal("/etc/resolv.conf", c.exec("cat", "/etc/resolv.conf"), "search a.example b.example\nnameserver 10.1.2.3\nnameserver fd00::53\noptions ndots:5 edns0")
		e.equal("shm_rmid_forced", c.exec("cat", "/proc/sys/kernel/shm_rmid_forced"), "1")
		e.equal("ip_local_port_range", strings.Join(strings.Fields(c.exec("cat", "/proc/sys/net/ipv4/ip_local_port_range")), " "), "20000 21000")
		e.equal("msgmax", c.exec("cat", "/proc/sys/kernel/msgmax"), "9000")
		e.contains("address of the status, inside", c.exec("ip", "addr", "show", "eth0"), s.Network.Ip)
		if len(s.Network.AdditionalIps) == 0 || net.ParseIP(s.Network.AdditionalIps[0].Ip).To4() != nil {
			e.Errorf("additional_ips %v, want an IPv6 address", s.Network.AdditionalIps)
		}

		node := e.pod("host-network", func(c *podConfig) { podNamespaces(c).Network = nsNode })
		n := node.start("c", idle())
		e.equal("hostname on the node's network", n.exec("hostname"), strings.TrimSpace(e.n.Enter("hostname")))

		for what, edit := range map[string]func(*podConfig){
			"unknown sysctl":         func(c *podConfig) { c.Linux.Sysctls = map[string]string{"net.no.such": "1"} },
			"sysctl of the node":     func(c *podConfig) { c.Linux.Sysctls = map[string]string{"vm.swappiness": "1"} },
			"sysctl that leads up":   func(c *podConfig) { c.Linux.Sysctls = map[string]string{"net/../kernel/panic": "1"} },
			"bad value of a sysctl":  func(c *podConfig) { c.Linux.Sysctls = map[string]string{"kernel.shm_rmid_forced": "x"} },
			"hostname with a space":  func(c *podConfig) { c.Hostname = "a b" },
			"hostname too long":      func(c *podConfig) { c.Hostname = strings.Repeat("x", 65) },
			"dns with a line feed":   func(c *podConfig) { c.DnsConfig = &runtimeapi.DNSConfig{Servers: []string{"1.1.1.1\nx"}} },
			"relative log directory": func(c *podConfig) { c.LogDirectory = "logs" },
			"no metadata":            func(c *podConfig) { c.Metadata = nil },
			"port above 65535":       func(c *podConfig) { c.PortMappings = []*runtimeapi.PortMapping{{HostPort: 70000, ContainerPort: 1}} },
			"host_ip is no address": func(c *podConfig) {
				c.PortMappings = []*runtimeapi.PortMapping{{HostPort: 7000, ContainerPort: 1, HostIp: "x"}}
			},
			"run_as_group alone": func(c *podConfig) { c.Linux.SecurityContext.RunAsGroup = value(1) },
		} {
			logs := func(c *podConfig) { c.LogDirectory = ""; edit(c) }
			if strings.Contains(what, "log") {
				config := e.podFor("refused", edit)
				_, err := e.cri.RunPodSandbox(e.Context(), &runtimeapi.RunPodSandboxRequest{Config: config, RuntimeHandler: e.handler})
				e.refused(what, err, codes.InvalidArgument)
				continue
			}
			_, err := e.tryPod("refused", logs)
			e.refused(what, err, codes.InvalidArgument)
		}
		_, err := e.cri.RunPodSandbox(e.Context(), &runtimeapi.RunPodSandboxRequest{Config: e.podFor("kata", nil), RuntimeHandler: "kata"})
		e.refused("unknown handler", err, codes.InvalidArgument, "kata")
		list, err := e.cri.ListPodSandbox(e.Context(), &runtimeapi.ListPodSandboxRequest{})
		e.must(err)
		e.equal("pods after requests that were refused", len(list.Items), 2)
	})
}

// freePort returns a port that nobody has on the host now, by either protocol.
func (e env) freePort() int32 {
	e.Helper()
	for {
		port := node.FreePort(e)
		if conn, err := net.ListenPacket("udp", fmt.Sprint(":", port)); err == nil {
			conn.Close()
			return int32(port)
		}
	}
}

func TestPortMappings(t *testing.T) {
	start(t, nil, func(e env) {
		tcp, loopback, udp, sctp := e.freePort(), e.freePort(), e.freePort(), e.freePort()
		p := e.pod("ports", func(c *podConfig) {
			c.PortMappings = []*runtimeapi.PortMapping{
				{Protocol: runtimeapi.Protocol_TCP, ContainerPort: 80, HostPort: tcp},
				{Protocol: runtimeapi.Protocol_TCP, ContainerPort: 80, HostPort: loopback, HostIp: "127.0.0.1"},
				{Protocol: runtimeapi.Protocol_UDP, ContainerPort: 53, HostPort: udp},
				{Protocol: runtimeapi.Protocol_SCTP, ContainerPort: 99, HostPort: sctp},
				{Protocol: runtimeapi.Protocol_TCP, ContainerPort: 8080}, // no host port asked for
			}
		})
		p.start("tcp", sh("while :; do echo over tcp | nc -l -p 80 -w 1; done"))
		p.start("udp", sh("while :; do nc -u -l -p 53 -w 1 -e echo over udp; done"))
		for _, address := range []string{addr("127.0.0.1", tcp), addr("127.0.0.1", loopback)} {
			eventually(e, "an answer from "+address, func() error {
				conn, err := net.DialTimeout("tcp", address, 10*time.Second)
				if err != nil {
					return err
				}
				defer conn.Close()
				conn.SetDeadline(time.Now().Add(10 * time.Second))
				data, err := io.ReadAll(conn)
				if !strings.Contains(string(data), "over tcp") {
					return fmt.Errorf("%q, %v", data, err)
				}
				return nil
			})
		}
		if ip := e.hostAddress(); ip != "" {
			if conn, err := net.DialTimeout("tcp", addr(ip, loopback), time.Second); err == nil {
				conn.Close()
				e.Errorf("a mapping of 127.0.0.1 answers on %s", ip)
			}
			conn, err := net.DialTimeout("tcp", addr(ip, tcp), 10*time.Second)
			e.must(err)
			conn.Close()
		}
		eventually(e, "an answer over UDP", func() error {
			conn, err := net.Dial("udp", addr("127.0.0.1", udp))
			if err != nil {
				return err
			}
			defer conn.Close()
			conn.Write([]byte("hello\n"))
			conn.SetDeadline(time.Now().Add(2 * time.Second))
			answer := make([]byte, 100)
			n, err := conn.Read(answer)
			if err == nil && !strings.Contains(string(answer[:n]), "over udp") {
				err = fmt.Errorf("%q", answer[:n])
			}
			return err
		})
		e.contains("rules of the node", e.n.Enter("nft", "list", "ruleset"), "sctp", fmt.Sprint(sctp))

		_, err := e.tryPod("taken", func(c *podConfig) {
			c.PortMappings = []*runtimeapi.PortMapping{{ContainerPort: 80, HostPort: tcp}}
		})
		e.refused("a port of another pod", err, codes.AlreadyExists, fmt.Sprint(tcp))
		if first := e.unprivilegedPort(); first > 81 {
			_, err = e.tryPod("privileged", func(c *podConfig) { c.PortMappings = []*runtimeapi.PortMapping{{ContainerPort: 80, HostPort: 81}} })
			e.refused("a privileged port", err, codes.PermissionDenied, "ip_unprivileged_port_start")
		}
		other := e.pod("udp-same-number", func(c *podConfig) {
			c.PortMappings = []*runtimeapi.PortMapping{{Protocol: runtimeapi.Protocol_UDP, ContainerPort: 80, HostPort: tcp}}
		})
		_, err = e.cri.StopPodSandbox(e.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: other.id})
		e.must(err)
		_, err = e.cri.StopPodSandbox(e.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.id})
		e.must(err)
		e.pod("again", func(c *podConfig) { c.PortMappings = []*runtimeapi.PortMapping{{ContainerPort: 80, HostPort: tcp}} })
	})
}

func addr(ip string, port int32) string { return net.JoinHostPort(ip, strconv.Itoa(int(port))) }

// hostAddress is an address of the host besides loopback, "" when it has none.
func (e env) hostAddress() string {
	e.Helper()
	addrs, err := net.InterfaceAddrs()
	e.must(err)
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil && n.IP.IsGlobalUnicast() {
			return n.IP.String()
		}
	}
	return ""
}

// unprivilegedPort is the first port that the host lets a user listen on.
func (e env) unprivilegedPort() int {
	e.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	e.must(err)
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrInet4{Port: 81, Addr: [4]byte{127, 0, 0, 1}}); err == unix.EACCES {
		return 1024
	}
	return 0
}
