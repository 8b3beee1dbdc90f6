package cri

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/subpod/subpod/tests/node"
)

// laptop is a daemon in a world whose network the test changes.
type laptop struct {
	*testing.T
	n *node.Node
	p *pod
}

// net changes the world's network by a script.
func (l laptop) net(script string) {
	l.Helper()
	argv := inWorld(l.T, l.n)
	argv = append(argv[:len(argv)-1], "sh", "-ec", script)
	if out, err := l.n.Command(l.Context(), argv[0], argv[1:]...).CombinedOutput(); err != nil {
		l.Fatalf("%s: %v: %s", script, err, out)
	}
}

// resolvConf replaces the world's resolv.conf, as programs that manage networks do.
func (l laptop) resolvConf(text string) {
	l.Helper()
	file := filepath.Join(l.n.Home, "etc", "resolv.conf")
	if err := errors.Join(os.WriteFile(file+".new", []byte(text), 0o644), os.Rename(file+".new", file)); err != nil {
		l.Fatal(err)
	}
}

func (l laptop) inPod(args ...string) (string, error) {
	l.Helper()
	return l.n.TryCrictl(append([]string{"exec", "-s", l.p.peers, "/peers"}, args...)...)
}

// resolves waits until pods get the answer that the servers of now give.
func (l laptop) resolves(when, want string) {
	l.Helper()
	eventually(l.T, when, func() error {
		if out, err := l.inPod("resolve", "name.test"); err != nil || strings.TrimSpace(out) != want {
			return fmt.Errorf("name.test is %q, want %s: %v", out, want, err)
		}
		return nil
	})
}

// reaches looks that the pod reaches an address of the outside, and is reached by one at its
// published port.
func (l laptop) reaches(when, outside, published string) {
	l.Helper()
	for _, network := range []string{"tcp", "udp"} {
		if outside != "" {
			eventually(l.T, when+": "+network+" from the pod", func() error {
				_, err := l.inPod("ask-peer", network, outside, "8000")
				return err
			})
		}
		eventually(l.T, when+": "+network+" to the pod", func() error {
			argv := inWorld(l.T, l.n, "ask-peer", network, published, "8001")
			out, err := l.n.Command(l.Context(), argv[0], argv[1:]...).CombinedOutput()
			if err != nil {
				err = fmt.Errorf("%w: %s", err, out)
			}
			return err
		})
	}
}

// Networks that a laptop comes into.
const (
	unplugged = `ip link del out0`
	elsewhere = `ip link add out0 type veth peer name out1
		ip link set out0 up; ip link set out1 up
		ip address add 203.0.113.7/24 dev out0
		ip route add default via 203.0.113.254 dev out0`
	vpn = `ip link add vpn0 type veth peer name vpn1
		ip link set vpn0 up; ip link set vpn1 up
		ip address add 192.0.2.77/24 dev vpn0
		ip route replace default via 192.0.2.254 dev vpn0`
	onlyIPv6 = `ip link del vpn0; ip address flush dev out0 scope global
		ip address add 2001:db8::7/64 dev out0 nodad
		ip route add default via 2001:db8::fe dev out0`
)

// TestLaptop: a laptop with a pod open loses its network, comes into another one, and into a
// VPN: the pod's names are resolved by the servers of now, it reaches what the machine
// reaches, and its published ports stay.
func TestLaptop(t *testing.T) {
	for _, uplink := range []string{"slirp4netns", "pasta", "gvisor-tap-vsock"} {
		t.Run(uplink, func(t *testing.T) {
			n := node.Start(t, node.Options{Prefix: world(), Config: "[node]\nuplink = \"" + uplink + "\"\n"})
			if out, err := n.Subpod("load", "oci-archive:"+node.Path(t, node.Images)+"/busybox.oci.tar"); err != nil {
				t.Fatalf("%s: %v", out, err)
			}
			serveInWorld(t, n, "answer-names", "127.0.0.1", "192.0.2.1")
			serveInWorld(t, n, "answer-names", "127.0.0.2", "192.0.2.2")
			serveInWorld(t, n, "answer-names", "::1", "192.0.2.3")
			serveInWorld(t, n, "tell-peers", "8000")
			l := laptop{t, n, runPeers(t, n, "peers", mapping(tcp, 8001, ""), mapping(udp, 8001, ""))}
			l.resolves("at home", "192.0.2.1")
			l.reaches("at home", worldAddress, worldAddress)

			l.net(unplugged)
			l.resolvConf("# no network\n")
			l.reaches("without a network", "", "127.0.0.1")

			l.net(elsewhere)
			l.resolvConf("nameserver 127.0.0.2\n")
			l.resolves("elsewhere", "192.0.2.2")
			l.reaches("elsewhere", "203.0.113.7", "203.0.113.7")

			l.net(vpn)
			l.resolvConf("nameserver 127.0.0.1\nnameserver 127.0.0.2\n")
			l.resolves("in a VPN", "192.0.2.1")
			l.reaches("in a VPN", "192.0.2.77", "203.0.113.7")

			l.net(onlyIPv6)
			l.resolvConf("nameserver ::1\n")
			if uplink == "gvisor-tap-vsock" {
				// IPv6 leads to the outside through switched egress alone: that is said.
				l.reaches("with IPv6 alone", "", "2001:db8::7")
				l.resolves("with IPv6 alone", "192.0.2.3")
				out, err := n.Subpod("info")
				node.Contains(t, "info", out, "by IPv6 alone now", "--egress switched")
				if err != nil {
					t.Error(err)
				}
			} else {
				l.reaches("with IPv6 alone", "2001:db8::7", "2001:db8::7")
				// New pods have the server that now answers.
				eventually(t, "the node's servers are the host's of now", func() error {
					text, err := os.ReadFile(filepath.Join(n.RunDir, "node", "resolv.conf"))
					if err == nil && string(text) != "nameserver fd00::3\n" {
						err = fmt.Errorf("they are %q", text)
					}
					return err
				})
				later := l
				later.p = runPeers(t, n, "later")
				later.resolves("with IPv6 alone", "192.0.2.3")
			}
			switched := runPod(t, n, "switched", nil, obj{"annotations": obj{"subpod.io/egress": "switched"}})
			exe, err := os.Executable()
			if err != nil {
				t.Fatal(err)
			}
			c := switched.run("peers", []string{"/peers", "tell-peers", "9000"}, obj{"mounts": []obj{{"host_path": exe, "container_path": "/peers", "readonly": true}}})
			eventually(t, "switched egress by IPv6", func() error {
				_, err := n.TryCrictl("exec", "-s", c, "/peers", "ask-peer", "tcp", "2001:db8::7", "8000")
				return err
			})
		})
	}
}

// TestLaptopStartsOffline: a daemon that starts without a network is as good as any once
// there is one.
func TestLaptopStartsOffline(t *testing.T) {
	for _, uplink := range []string{"slirp4netns", "pasta", "gvisor-tap-vsock"} {
		t.Run(uplink, func(t *testing.T) {
			offline := world()
			script := len(offline) - 2
			offline[script] = strings.Replace(offline[script], "cp -r", unplugged+"\ncp -r", 1)
			n := node.Start(t, node.Options{Prefix: offline, Config: "[node]\nuplink = \"" + uplink + "\"\n"})
			if out, err := n.Subpod("load", "oci-archive:"+node.Path(t, node.Images)+"/busybox.oci.tar"); err != nil {
				t.Fatalf("%s: %v", out, err)
			}
			out, err := n.Subpod("info")
			node.Contains(t, "info", out, "no way out now")
			if uplink == "pasta" { // which may not start like that
				node.Contains(t, "info", out, "pasta may not start without one")
			}
			if err != nil {
				t.Error(err)
			}
			serveInWorld(t, n, "answer-names", "127.0.0.2", "192.0.2.2")
			serveInWorld(t, n, "tell-peers", "8000")
			l := laptop{t, n, runPeers(t, n, "peers", mapping(tcp, 8001, ""), mapping(udp, 8001, ""))}
			l.reaches("without a network", "", "127.0.0.1")
			l.net(elsewhere)
			l.resolvConf("nameserver 127.0.0.2\n")
			l.resolves("elsewhere", "192.0.2.2")
			l.reaches("elsewhere", "203.0.113.7", "203.0.113.7")
		})
	}
}
