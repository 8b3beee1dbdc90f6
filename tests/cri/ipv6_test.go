package cri

import (
	"errors"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"

	"github.com/subpod/subpod/tests/leak"
	"github.com/subpod/subpod/tests/node"
)

// worldAddress6 is the IPv6 address of the machine of an IPv6 world.
const worldAddress6 = "2001:db8::7"

// withIPv6 has a world start with an address and a default route by IPv6, beside those by
// IPv4 or in place of them; its resolv.conf names ::1 then.
func withIPv6(world []string, alone bool) []string {
	change := `ip address add ` + worldAddress6 + `/64 dev out0 nodad
		ip route add default via 2001:db8::fe dev out0
		`
	script := &world[len(world)-2]
	if alone {
		change = "ip address del " + worldAddress + "/24 dev out0\n" + change
		*script = strings.Replace(*script, "echo nameserver 127.0.0.1", "echo nameserver ::1", 1)
	}
	*script = strings.Replace(*script, "cp -r", change+"cp -r", 1)
	return world
}

// muchBytes take many packets of the biggest size that the kernel makes of them.
const muchBytes = 8 << 20

// takeMuch is a server that takes bytes and gives as many back.
func takeMuch(args []string) error {
	l, err := net.Listen("tcp", ":"+args[0])
	if err != nil {
		return err
	}
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer conn.Close()
			if n, _ := io.CopyN(io.Discard, conn, muchBytes); n == muchBytes {
				_, _ = io.CopyN(conn, zeros{}, muchBytes)
			}
		}()
	}
}

// much sends to takeMuch, and reads what comes back. Arguments: address, port.
func much(args []string) error {
	conn, err := net.Dial("tcp", net.JoinHostPort(args[0], args[1]))
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := io.CopyN(conn, zeros{}, muchBytes); err != nil {
		return err
	}
	_, err = io.CopyN(io.Discard, conn, muchBytes)
	return err
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// killUplink kills the uplink's program and waits until there is another.
func killUplink(t *testing.T, n *node.Node, uplink string) {
	t.Helper()
	program := func() int {
		for _, p := range leak.Descendants(n.PID()) {
			// pasta becomes passt.avx2 where it can.
			if name, _, _ := strings.Cut(p.Name, "."); name == uplink || name == "passt" {
				return p.PID
			}
		}
		return 0
	}
	before := program()
	if before == 0 {
		t.Fatalf("no process %s among %v", uplink, leak.Descendants(n.PID()))
	}
	if err := syscall.Kill(before, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the uplink is started again", func() error {
		if now := program(); now == 0 || now == before {
			return errors.New("it is not")
		}
		return nil
	})
}

// TestUplinkIPv6: on a host that has IPv6 beside IPv4, and on one that has it alone, pods reach
// the outside by it, by TCP and UDP, and resolve names; also once the uplink's program has been
// killed. `subpod info` and `subpod doctor` have nothing to say then.
func TestUplinkIPv6(t *testing.T) {
	for _, uplink := range []string{"slirp4netns", "pasta"} {
		for host, alone := range map[string]bool{"dual": false, "alone": true} {
			t.Run(uplink+"/"+host, func(t *testing.T) {
				n := node.Start(t, node.Options{Prefix: withIPv6(world(), alone), Config: "[node]\nuplink = \"" + uplink + "\"\n"})
				if out, err := n.Subpod("load", "oci-archive:"+node.Path(t, node.Images)+"/busybox.oci.tar"); err != nil {
					t.Fatalf("%s: %v", out, err)
				}
				out, err := n.Subpod("info")
				node.Contains(t, "info", out, uplink)
				if err != nil || strings.Contains(out, "IPv4 only") || strings.Contains(out, "IPv6 alone") {
					t.Errorf("info: %v: %s", err, out)
				}
				answer, server, other := "192.0.2.1", "127.0.0.1", worldAddress
				if alone {
					answer, server, other = "192.0.2.3", "::1", ""
				}
				serveInWorld(t, n, "answer-names", server, answer)
				serveInWorld(t, n, "tell-peers", "8000")
				serveInWorld(t, n, "take-much", "8100")
				l := laptop{t, n, runPeers(t, n, "peers", mapping(tcp, 8001, ""), mapping(udp, 8001, ""))}
				for _, when := range []string{"at the start", "after the uplink was killed"} {
					l.reaches(when, worldAddress6, worldAddress6)
					if other != "" {
						l.reaches(when, other, other)
					}
					l.resolves(when, answer)
					out, err := l.inPod("much", worldAddress6, "8100")
					// pasta of 2023 resets a connection now and then (docs/performance.md).
					for again := 0; err != nil && uplink == "pasta" && again < 4; again++ {
						out, err = l.inPod("much", worldAddress6, "8100")
					}
					if err != nil {
						t.Errorf("%s: %d bytes each way by IPv6: %v: %s", when, muchBytes, err, out)
					}
					if when == "at the start" {
						killUplink(t, n, uplink)
					}
				}
			})
		}
	}
}

// TestUplinkWithoutIPv6: what an uplink does not do by IPv6 is said, with the reason.
func TestUplinkWithoutIPv6(t *testing.T) {
	for config, reason := range map[string]string{
		"uplink = \"gvisor-tap-vsock\"\n": "gvisor-tap-vsock has no IPv6",
		"uplink_ipv6 = false\n":           "node.uplink_ipv6 is false",
	} {
		n := node.Start(t, node.Options{Prefix: withIPv6(world(), false), Config: "[node]\n" + config})
		if out, err := n.Subpod("info"); err != nil || !strings.Contains(out, "IPv4 only ("+reason+")") {
			t.Errorf("info: %v: %s", err, out)
		}
		if out, err := n.Subpod("doctor"); err != nil || !strings.Contains(out, "no way out by IPv6, which this host has: "+reason) {
			t.Errorf("doctor: %v: %s", err, out)
		}
		n.Stop()
	}
}
