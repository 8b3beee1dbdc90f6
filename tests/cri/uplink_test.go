package cri

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/subpod/subpod/tests/node"
)

// worldAddress is the address of a world's machine.
const worldAddress = "198.51.100.1"

// world is a command that starts a daemon in namespaces of its own, as on another
// machine: with an address, a default route, ping for everyone, and an /etc below the
// daemon's home, whose resolv.conf names 127.0.0.1. Without CAP_SYS_ADMIN the daemon
// makes its own node there, with an uplink.
func world() []string {
	script := `set -e
		ip link set lo up
		ip link add out0 type veth peer name out1
		ip link set out0 up; ip link set out1 up
		ip address add ` + worldAddress + `/24 dev out0
		ip route add default via 198.51.100.254 dev out0
		echo 0 65535 >/proc/sys/net/ipv4/ping_group_range
		cp -r --preserve=links,mode /etc "$HOME" 2>/dev/null || true
		rm -f "$HOME/etc/resolv.conf"; echo nameserver 127.0.0.1 >"$HOME/etc/resolv.conf"
		mount --bind "$HOME/etc" /etc
		exec setpriv --bounding-set -sys_admin "$@"`
	return []string{"unshare", "--map-root-user", "--map-auto", "--mount", "--net", "--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-c", script, "sh"}
}

// inWorld returns the command that runs a part of the test binary beside the daemon.
func inWorld(t *testing.T, n *node.Node, part ...string) []string {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return append([]string{"nsenter", "-t", child(t, n.PID()), "-U", "-n", "--preserve-credentials", exe}, part...)
}

// serveInWorld starts a part of the test binary that runs until the end of the test.
func serveInWorld(t *testing.T, n *node.Node, part ...string) {
	t.Helper()
	argv := inWorld(t, n, part...)
	cmd := n.Command(t.Context(), argv[0], argv[1:]...)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
}

// answerNames is a DNS server that knows one answer to every question for an IPv4
// address. Arguments: the address to listen on, the answer.
func answerNames(args []string) error {
	conn, err := net.ListenPacket("udp", net.JoinHostPort(args[0], "53"))
	if err != nil {
		return err
	}
	for buf := make([]byte, 4096); ; {
		n, from, err := conn.ReadFrom(buf)
		if err != nil {
			return err
		}
		var m dnsmessage.Message
		if err := m.Unpack(buf[:n]); err != nil || len(m.Questions) != 1 {
			continue
		}
		m.Response, m.RecursionAvailable, m.Additionals = true, true, nil
		if q := m.Questions[0]; q.Type == dnsmessage.TypeA {
			m.Answers = []dnsmessage.Resource{{
				Header: dnsmessage.ResourceHeader{Name: q.Name, Class: dnsmessage.ClassINET},
				Body:   &dnsmessage.AResource{A: [4]byte(net.ParseIP(args[1]).To4())},
			}}
		}
		if answer, err := m.Pack(); err == nil {
			_, _ = conn.WriteTo(answer, from)
		}
	}
}

// TestUplinks: each uplink takes pods to the outside, by TCP, UDP and ICMP echo, lets
// the outside in by host ports, and answers DNS with the servers that the host's
// resolv.conf names now.
func TestUplinks(t *testing.T) {
	for _, uplink := range []string{"slirp4netns", "pasta", "gvisor-tap-vsock"} {
		t.Run(uplink, func(t *testing.T) { testUplink(t, uplink) })
	}
}

// gateways that answer; with pasta the gateway is only a name for the host.
var gateways = map[string]string{"slirp4netns": "10.0.2.2", "gvisor-tap-vsock": "10.0.2.1"}

func testUplink(t *testing.T, uplink string) {
	n := node.Start(t, node.Options{Prefix: world(), Config: "[node]\nuplink = \"" + uplink + "\"\n"})
	if out, err := n.Subpod("load", "oci-archive:"+node.Path(t, node.Images)+"/busybox.oci.tar"); err != nil {
		t.Fatalf("%s: %v", out, err)
	}
	serveInWorld(t, n, "answer-names", "127.0.0.1", "192.0.2.1")
	serveInWorld(t, n, "answer-names", "127.0.0.2", "192.0.2.2")
	serveInWorld(t, n, "tell-peers", "8000")
	p := runPeers(t, n, "peers", mapping(tcp, 8001, ""), mapping(udp, 8001, ""))
	inPod := func(args ...string) (string, error) {
		return n.TryCrictl(append([]string{"exec", "-s", p.peers, "/peers"}, args...)...)
	}
	for _, network := range []string{"tcp", "udp"} {
		eventually(t, network+" from the pod", func() error {
			_, err := inPod("ask-peer", network, worldAddress, "8000")
			return err
		})
		eventually(t, network+" to the pod", func() error {
			argv := inWorld(t, n, "ask-peer", network, worldAddress, "8001")
			out, err := n.Command(t.Context(), argv[0], argv[1:]...).CombinedOutput()
			if err != nil {
				err = fmt.Errorf("%w: %s", err, out)
			}
			return err
		})
	}
	tool := p.run("tool", sleeper())
	pinged := []string{worldAddress}
	if gateway := gateways[uplink]; gateway != "" {
		pinged = append(pinged, gateway)
	}
	for _, address := range pinged {
		if out, err := n.TryCrictl("exec", "-s", tool, "ping", "-c", "1", "-W", "5", address); err != nil {
			t.Errorf("ping %s: %v: %s", address, err, out)
		}
	}
	resolves := func(when, want string) {
		t.Helper()
		eventually(t, when, func() error {
			if out, err := inPod("resolve", "name.test"); err != nil || strings.TrimSpace(out) != want {
				return fmt.Errorf("name.test is %q, want %s: %v", out, want, err)
			}
			return nil
		})
	}
	resolv := filepath.Join(n.Home, "etc", "resolv.conf")
	resolves("at the start", "192.0.2.1")
	if err := os.WriteFile(resolv, []byte("nameserver 127.0.0.2\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	resolves("resolv.conf written", "192.0.2.2")
	if err := errors.Join(os.WriteFile(resolv+".new", []byte("nameserver 127.0.0.1\n"), 0o644), os.Rename(resolv+".new", resolv)); err != nil {
		t.Fatal(err)
	}
	resolves("resolv.conf replaced", "192.0.2.1")
}

// resolve prints the addresses of a name.
func resolve(args []string) error {
	addrs, err := net.LookupHost(args[0])
	slices.Sort(addrs)
	fmt.Println(strings.Join(addrs, " "))
	return err
}

// TestUplinkFallback: what is not installed is passed over, in the order of the default
// configuration.
func TestUplinkFallback(t *testing.T) {
	for _, c := range []struct{ missing, want string }{
		{"slirp4netns_path = \"/no/such\"\n", "pasta (/no/such is not installed; pasta is next in node.uplink_fallback): every packet"},
		{"slirp4netns_path = \"/no/such\"\npasta_path = \"/no/such\"\n", "gvisor-tap-vsock (/no/such is not installed; gvisor-tap-vsock is next in node.uplink_fallback): IPv4 only (gvisor-tap-vsock has no IPv6)"},
	} {
		// In a world of its own, which has a way out: without one pasta is passed over, too.
		n := node.Start(t, node.Options{Prefix: world(), Config: "[node]\n" + c.missing})
		out, err := n.Subpod("info")
		if err != nil {
			t.Fatal(err)
		}
		expect(t, "info", out, c.want)
		out, err = n.Subpod("doctor")
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		n.Stop()
	}
}
