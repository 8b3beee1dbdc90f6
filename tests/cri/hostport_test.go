package cri

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/subpod/subpod/tests/node"
)

// tellPeers is a server that tells its clients their own addresses, by TCP and UDP.
// Argument: its port.
func tellPeers(args []string) error {
	l, err := net.Listen("tcp", ":"+args[0])
	if err != nil {
		return err
	}
	u, err := net.ListenPacket("udp", ":"+args[0])
	if err != nil {
		return err
	}
	go func() {
		for buf := make([]byte, 16); ; {
			if _, from, err := u.ReadFrom(buf); err == nil {
				_, _ = u.WriteTo([]byte(from.String()), from)
			}
		}
	}()
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		_, _ = io.WriteString(c, c.RemoteAddr().String())
		c.Close()
	}
}

// peerOf asks a server of tellPeers as whom it sees us; local is our address, or "".
func peerOf(network, local, server string, port int) (netip.Addr, error) {
	d := net.Dialer{Timeout: 5 * time.Second}
	if ip := net.ParseIP(local); ip != nil && network == "tcp" {
		d.LocalAddr = &net.TCPAddr{IP: ip}
	} else if ip != nil {
		d.LocalAddr = &net.UDPAddr{IP: ip}
	}
	c, err := d.Dial(network, net.JoinHostPort(server, strconv.Itoa(port)))
	if err != nil {
		return netip.Addr{}, err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	if network == "udp" {
		if _, err := c.Write([]byte("?")); err != nil {
			return netip.Addr{}, err
		}
	}
	buf := make([]byte, 64)
	n, err := c.Read(buf)
	if err != nil {
		return netip.Addr{}, err
	}
	peer, err := netip.ParseAddrPort(string(buf[:n]))
	return peer.Addr().Unmap(), err
}

// askPeer prints what peerOf says. Arguments: network, server, port.
func askPeer(args []string) error {
	port, err := strconv.Atoi(args[2])
	if err != nil {
		return err
	}
	peer, err := peerOf(args[0], "", args[1], port)
	fmt.Println(peer)
	return err
}

// mapping is a port mapping onto the server of runPeers.
func mapping(protocol, hostPort int, hostIP string) obj {
	return obj{"protocol": protocol, "container_port": 8000, "host_port": hostPort, "host_ip": hostIP}
}

const tcp, udp, sctp = 0, 1, 2

// runPeers starts a pod whose server is tellPeers.
func runPeers(t *testing.T, n *node.Node, name string, mappings ...obj) *pod {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p := runPod(t, n, name, nil, obj{"port_mappings": mappings})
	p.peers = p.run("peers", []string{"/peers", "tell-peers", "8000"}, obj{"mounts": []obj{{"host_path": exe, "container_path": "/peers", "readonly": true}}})
	return p
}

// answers waits for the answer from a host port and returns as whom the pod sees us.
func answers(t *testing.T, network, local, server string, port int) (peer netip.Addr) {
	t.Helper()
	eventually(t, fmt.Sprintf("%s answer from %s port %d", network, server, port), func() (err error) {
		peer, err = peerOf(network, local, server, port)
		return err
	})
	return peer
}

// free fails the test unless the host can bind the port by both protocols, on all
// addresses of both families.
func free(t *testing.T, when string, ports ...int) {
	t.Helper()
	for _, port := range ports {
		if err := bindable(port); err != nil {
			t.Errorf("%s: %v", when, err)
		}
	}
}

// bindable binds a port for a moment.
func bindable(port int) (err error) {
	for _, host := range []string{"0.0.0.0", "::"} {
		addr := net.JoinHostPort(host, strconv.Itoa(port))
		l, tcpErr := net.Listen("tcp", addr)
		if tcpErr == nil {
			l.Close()
		}
		c, udpErr := net.ListenPacket("udp", addr)
		if udpErr == nil {
			c.Close()
		}
		err = errors.Join(err, tcpErr, udpErr)
	}
	return err
}

// TestHostPorts: published ports on the host itself, by both protocols and families.
func TestHostPorts(t *testing.T) {
	n := node.Start(t, node.Options{})
	n.Crictl("pull", busybox)
	noLeaks(t, n)
	everywhere, second, six, onlyNode := freePort(t), freePort(t), freePort(t), freePort(t)
	p := runPeers(t, n, "peers",
		mapping(tcp, everywhere, ""), mapping(udp, everywhere, ""),
		mapping(tcp, second, "127.0.0.2"), mapping(udp, second, "127.0.0.2"),
		mapping(tcp, six, "::"), mapping(udp, six, "::1"),
		mapping(sctp, onlyNode, ""))

	for _, network := range []string{"tcp", "udp"} {
		for _, host := range []string{"127.0.0.1", "::1", hostAddress(t)} {
			t.Run(network+" "+host, func(t *testing.T) { answers(t, network, "", host, everywhere) })
		}
		t.Run(network+" host_ip", func(t *testing.T) {
			answers(t, network, "", "127.0.0.2", second)
			answers(t, network, "", "::1", six)
			for server, port := range map[string]int{"127.0.0.1": second, "::1": second, "127.0.0.2": six} {
				if _, err := peerOf(network, "", server, port); !errors.Is(err, syscall.ECONNREFUSED) {
					t.Errorf("%s port %d, which is published on another address: %v, want ECONNREFUSED", server, port, err)
				}
			}
		})
	}
	t.Run("source address", func(t *testing.T) { testSourceAddress(t, everywhere, six) })
	t.Run("sctp", func(t *testing.T) {
		free(t, "SCTP is the node's alone", onlyNode)
		expect(t, "rules", n.For(t).Enter("nft", "list", "map", "inet", "subpod", "ports4"), fmt.Sprintf("sctp . %d : %s . 8000", onlyNode, p.ip()))
	})
	t.Run("freed by stop", func(t *testing.T) {
		n.For(t).Crictl("stopp", p.id)
		free(t, "after stopp", everywhere, second, six, onlyNode)
	})
	t.Run("freed by removal", func(t *testing.T) {
		n := n.For(t)
		p := runPeers(t, n, "removed", mapping(tcp, everywhere, ""), mapping(udp, everywhere, ""))
		answers(t, "tcp", "", "127.0.0.1", everywhere)
		n.Crictl("rmp", "-f", p.id)
		free(t, "after rmp", everywhere)
	})
}

// testSourceAddress: TCP clients are seen by their own addresses, but for those on
// loopback, to whom a pod could not answer, and those of the family that the port
// does not lead to. UDP clients are never.
func testSourceAddress(t *testing.T, four, six int) {
	for _, c := range []struct {
		network, host string
		port          int
		kept          bool
	}{
		{"tcp", hostAddress(t), four, true},
		{"tcp", globalAddress(t, false), six, true},
		{"tcp", globalAddress(t, false), four, false},
		{"tcp", "127.0.0.1", four, false},
		{"tcp", "::1", six, false},
		{"udp", hostAddress(t), four, false},
	} {
		if c.host == "" {
			t.Log("this machine has no IPv6 address but its loopback's: clients of that family are not tried")
			continue
		}
		peer := answers(t, c.network, c.host, c.host, c.port)
		if kept := peer == netip.MustParseAddr(c.host); kept != c.kept {
			t.Errorf("%s from %s to port %d: the pod sees %s", c.network, c.host, c.port, peer)
		}
	}
}

// TestHostPortsAfterCrash: ports serve while no server runs, are the pod's again under
// the next one, and are free after the death of the node.
func TestHostPortsAfterCrash(t *testing.T) {
	n := node.Start(t, node.Options{})
	n.Crictl("pull", busybox)
	port := freePort(t)
	p := runPeers(t, n, "peers", mapping(tcp, port, ""), mapping(udp, port, ""))
	serve := func() {
		t.Helper()
		for _, network := range []string{"tcp", "udp"} {
			answers(t, network, "", "127.0.0.1", port)
		}
	}
	serve()
	if err := syscall.Kill(n.For(t).Server(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for _, network := range []string{"tcp", "udp"} {
		if _, err := peerOf(network, "", "127.0.0.1", port); err != nil {
			t.Errorf("%s while no server runs: %v", network, err)
		}
	}
	eventually(t, "another server serves", func() error { _, err := n.TryCrictl("version"); return err })
	serve()
	n.Crictl("stopp", p.id)
	free(t, "after stopp under another server than runp", port)
	n.Crictl("rmp", p.id)

	runPeers(t, n, "doomed", mapping(tcp, port, ""), mapping(udp, port, ""))
	serve()
	if err := syscall.Kill(n.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := n.Wait(node.Converge); err == nil {
		t.Fatal("a killed daemon has ended in good order")
	}
	// Its processes end a moment after its first one.
	eventually(t, "the port is free after the death of the node", func() error { return bindable(port) })
	n.Run()
	free(t, "in a new node", port)
	runPeers(t, n, "heir", mapping(tcp, port, ""), mapping(udp, port, ""))
	serve()
}

// TestHostPortRefused: the error names pod, port and remedy, and nothing is left of
// the pod.
func TestHostPortRefused(t *testing.T) {
	n := node.Start(t, node.Options{})
	n.Crictl("pull", busybox)
	noLeaks(t, n)
	refused := func(t *testing.T, n *node.Node, name string, mappings []obj, want ...string) {
		t.Helper()
		config := podConfig(n, name, obj{"port_mappings": mappings})
		if err := os.MkdirAll(config["log_directory"].(string), 0o700); err != nil {
			t.Fatal(err)
		}
		id, err := n.TryCrictl("runp", n.File(name+".json", config))
		if err == nil {
			n.Crictl("rmp", "-f", strings.TrimSpace(id))
			t.Fatal("the pod got the port")
		}
		expect(t, "error", err.Error(), append(want, "tests/"+name)...)
		if left := n.Crictl("pods", "-q", "--name", name); left != "" {
			t.Errorf("the pod is there nevertheless: %s", left)
		}
		// With another port the name is free at once, and so is the mapping's other half.
		p := runPeers(t, n, name, mappings[0])
		n.Crictl("rmp", "-f", p.id)
	}
	for protocol, network := range map[int]string{tcp: "tcp", udp: "udp"} {
		t.Run(network+" taken", func(t *testing.T) {
			n := n.For(t)
			good, taken := freePort(t), occupy(t, network)
			refused(t, n, network+"-taken", []obj{mapping(protocol, good, ""), mapping(protocol, taken, "")},
				fmt.Sprintf("%s port %d", network, taken), "in use", "stop that or choose another host port")
		})
		t.Run(network+" privileged", func(t *testing.T) {
			n := n.For(t)
			start, err := os.ReadFile("/proc/sys/net/ipv4/ip_unprivileged_port_start")
			if err != nil || string(bytes.TrimSpace(start)) == "0" {
				t.Skipf("this machine has no privileged ports: net.ipv4.ip_unprivileged_port_start is %q (%v)", start, err)
			}
			refused(t, n, network+"-privileged", []obj{mapping(protocol, freePort(t), ""), mapping(protocol, 1, "")},
				network+" port 1", "sudo sysctl -w net.ipv4.ip_unprivileged_port_start=1")
		})
		t.Run(network+" of another pod", func(t *testing.T) {
			n := n.For(t)
			port := freePort(t)
			runPeers(t, n, network+"-owner", mapping(protocol, port, ""))
			refused(t, n, network+"-late", []obj{mapping(protocol, freePort(t), ""), mapping(protocol, port, "")},
				fmt.Sprintf("%s port %d", network, port), "by pod tests/"+network+"-owner", "another hostPort")
		})
	}
}

// occupy takes a port of the host until the end of the test.
func occupy(t *testing.T, network string) int {
	t.Helper()
	port := freePort(t)
	addr := fmt.Sprintf("127.0.0.1:%d", port)
	var c io.Closer
	var err error
	if network == "udp" {
		c, err = net.ListenPacket(network, addr)
	} else {
		c, err = net.Listen(network, addr)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return port
}
