package attack

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/tests/node"
)

// The test binary is also the program of the attacker and of those who listen, in a
// container or in the node: the second argument is one of these.
func init() {
	programs := map[string]func(linkEnds, string) error{
		"net-send": sendFrames, "net-listen": listenFrames, "net-flood": floodBridge, "net-datagrams": listenDatagrams, "net-reserved": sendReserved, "net-loopback": sendLoopback, "net-reach": reach,
	}
	if len(os.Args) != 4 || programs[os.Args[1]] == nil {
		return
	}
	var l linkEnds
	err := json.Unmarshal([]byte(os.Args[2]), &l)
	if err == nil {
		err = programs[os.Args[1]](l, os.Args[3])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// lastMark ends what a listener waits for: an allowed packet that is sent last.
const lastMark = "the last one"

// TestNeighbours: a pod with the default capabilities (NET_RAW) can send nothing to
// another pod, or to the node, that is not its own: no address of a neighbour, of the
// gateway or of anyone, no message of a router or a DHCP server, no VLAN tag. It is
// tried in one Kubernetes namespace, where pods talk freely, with isolation and
// without.
func TestNeighbours(t *testing.T) {
	for _, isolate := range []bool{false, true} {
		t.Run(fmt.Sprintf("isolate=%v", isolate), func(t *testing.T) {
			n := node.Start(t, node.Options{Config: node.Bridge + fmt.Sprintf("isolate = %v\nsubnets = [\"10.88.0.0/16\", \"fd10:88::/64\"]\n", isolate)})
			l := newLink(t, n)
			t.Run("frames", func(t *testing.T) { l.in(t).tryFrames() })
			t.Run("take-over", func(t *testing.T) { l.in(t).tryTakeOver() })
			t.Run("hardware addresses", func(t *testing.T) { l.in(t).tryHardwareAddresses() })
			t.Run("past the bridge", func(t *testing.T) { l.in(t).tryReserved() })
			t.Run("loopback", func(t *testing.T) { l.in(t).tryLoopback() })
			n.KillServer()
			node.Eventually(t, "the next server serves", func() error { _, err := n.TryCrictl("version"); return err })
			t.Run("frames after a restart", func(t *testing.T) { l.in(t).tryFrames() })
			t.Run("frames without the defence", func(t *testing.T) { l.in(t).tryUndefended() })
		})
	}
}

// link is the bridge of a node with three pods.
type link struct {
	*testing.T
	n    *node.Node
	cri  node.Client
	ends linkEnds
	exe  string

	attacker, victim, peer string // containers
}

func (l link) in(t *testing.T) link {
	l.T, l.n = t, l.n.For(t)
	return l
}

func newLink(t *testing.T, n *node.Node) link {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	l := link{T: t, n: n, cri: n.CRI(), exe: exe}
	if _, err := l.cri.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: node.Busybox}}); err != nil {
		t.Fatal(err)
	}
	l.attacker, l.ends.Attacker = l.pod("attacker")
	l.victim, l.ends.Victim = l.pod("victim")
	l.peer, _ = l.pod("peer")
	gateway := netip.MustParseAddr("10.88.0.1")
	l.ends.Gateway = linkEnd{macFor(gateway), gateway, netip.MustParseAddr("fd10:88::1")}
	return l
}

// pod runs a pod with a container that has this test's binary as /attack.
func (l link) pod(name string) (container string, end linkEnd) {
	l.Helper()
	must := func(err error) {
		l.Helper()
		if err != nil {
			l.Fatalf("pod %s: %v", name, err)
		}
	}
	ownPID := &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}
	config := &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "tests", Uid: name}, LogDirectory: filepath.Join(l.n.Dir, "logs"),
		Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: ownPID}},
	}
	pod, err := l.cri.RunPodSandbox(l.Context(), &runtimeapi.RunPodSandboxRequest{Config: config})
	must(err)
	l.Cleanup(func() {
		_, _ = l.cri.RemovePodSandbox(context.Background(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: pod.PodSandboxId})
	})
	made, err := l.cri.CreateContainer(l.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: pod.PodSandboxId, SandboxConfig: config, Config: &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: name}, Image: &runtimeapi.ImageSpec{Image: node.Busybox}, LogPath: name + ".log",
		Command: []string{"sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.1; done"},
		Mounts:  []*runtimeapi.Mount{{HostPath: l.exe, ContainerPath: "/attack", Readonly: true}},
		Linux:   &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{NamespaceOptions: ownPID}},
	}})
	must(err)
	_, err = l.cri.StartContainer(l.Context(), &runtimeapi.StartContainerRequest{ContainerId: made.ContainerId})
	must(err)
	st, err := l.cri.PodSandboxStatus(l.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: pod.PodSandboxId})
	must(err)
	network := st.Status.Network
	if len(network.AdditionalIps) != 1 {
		l.Fatalf("pod %s has the addresses %v, want one of each family", name, network)
	}
	end = linkEnd{V4: netip.MustParseAddr(network.Ip), V6: netip.MustParseAddr(network.AdditionalIps[0].Ip)}
	end.MAC = macFor(end.V4)
	return made.ContainerId, end
}

// macFor is how the bridge derives hardware addresses.
func macFor(a netip.Addr) hwAddr {
	b := a.As4()
	return hwAddr{0x0a, 0x58, b[0], b[1], b[2], b[3]}
}

func (l link) program(name, argument string) []string {
	l.Helper()
	ends, err := json.Marshal(l.ends)
	if err != nil {
		l.Fatal(err)
	}
	return []string{name, string(ends), argument}
}

// exec runs a command in a container; it must succeed.
func (l link) exec(container string, argv ...string) string {
	l.Helper()
	resp, err := l.cri.ExecSync(l.Context(), &runtimeapi.ExecSyncRequest{ContainerId: container, Cmd: argv, Timeout: 60})
	if err != nil || resp.ExitCode != 0 {
		l.Fatalf("%.80q in a container: %v, exit code %d: %s%s", argv, err, resp.GetExitCode(), resp.GetStdout(), resp.GetStderr())
	}
	return string(resp.Stdout)
}

func (l link) attack(name, argument string) string {
	l.Helper()
	return l.exec(l.attacker, append([]string{"/attack"}, l.program(name, argument)...)...)
}

// inNode starts a program in the node network namespace; output waits for its end.
func (l link) inNode(name, argument string) (output func() string) {
	l.Helper()
	cmd := l.n.Command(l.Context(), node.Path(l, "bin/subpod"), append([]string{"nsenter", "--", l.exe}, l.program(name, argument)...)...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	stdout, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		l.Fatal(err)
	}
	ready := make([]byte, len(readyLine))
	if _, err := io.ReadFull(stdout, ready); err != nil {
		_ = cmd.Wait()
		l.Fatalf("%s in the node: %v: %s", name, err, stderr.Bytes())
	}
	return func() string {
		l.Helper()
		text, _ := io.ReadAll(stdout)
		if err := cmd.Wait(); err != nil {
			l.Fatalf("%s in the node: %v: %s", name, err, stderr.Bytes())
		}
		return string(text)
	}
}

const readyLine = "ready\n"

// tryFrames sends every frame: others hear the allowed ones, and no more.
func (l link) tryFrames() {
	for who, heard := range l.sendAll() {
		for _, f := range l.ends.frames() {
			if heard[f.name] != f.allowed {
				l.Errorf("%s: arrives at %s: %v, want %v", f.name, who, heard[f.name], f.allowed)
			}
		}
	}
}

// tryUndefended shows that all of them would be heard: with the rules of port security
// passed by, what is not heard is what others drop.
func (l link) tryUndefended() {
	l.n.Enter("nft", "insert", "rule", "bridge", "subpod-ports", "prerouting", "accept")
	others := map[string]bool{
		"IPv4 of loopback":            true, // the table inet subpod
		"advertisement in a fragment": true, // the kernel's connection tracking
	}
	for who, heard := range l.sendAll() {
		for _, f := range l.ends.frames() {
			if !heard[f.name] && !others[f.name] {
				l.Errorf("%s: does not arrive at %s even without the rules: the test would not see it", f.name, who)
			}
		}
	}
}

// sendAll sends every frame while another pod and the node listen, and returns what
// each of them has heard.
func (l link) sendAll() map[string]map[string]bool {
	l.Helper()
	atNode := l.inNode("net-listen", "subpod0")
	atPeer := make(chan string, 1)
	go func() {
		resp, err := l.cri.ExecSync(l.Context(), &runtimeapi.ExecSyncRequest{ContainerId: l.peer, Cmd: append([]string{"/attack"}, l.program("net-listen", "eth0")...), Timeout: 60})
		atPeer <- fmt.Sprint(string(resp.GetStdout()), string(resp.GetStderr()), err)
	}()
	// The peer listens when it has a packet socket.
	node.Eventually(l, "the peer listens", func() error {
		if sockets := l.exec(l.peer, "cat", "/proc/net/packet"); strings.Count(sockets, "\n") < 2 {
			return errors.New("no packet socket")
		}
		return nil
	})
	l.attack("net-send", "eth0")
	out := map[string]map[string]bool{}
	for who, text := range map[string]string{"another pod": <-atPeer, "the node": atNode()} {
		if !strings.Contains(text, lastMark) {
			l.Fatalf("%s did not hear the end: %s", who, text)
		}
		out[who] = map[string]bool{}
		for line := range strings.Lines(text) {
			out[who][strings.TrimSpace(line)] = true
		}
	}
	return out
}

// tryTakeOver is the attack as it is done: whoever talks to the victim gets the
// attacker's hardware address for the victim's, by ARP and neighbour discovery.
func (l link) tryTakeOver() {
	gateway, victim := l.ends.Gateway, l.ends.Victim
	reach := func() {
		l.n.Enter(append([]string{l.exe}, l.program("net-reach", "victim")...)...)
		l.exec(l.peer, append([]string{"/attack"}, l.program("net-reach", "victim gateway")...)...)
	}
	reach()
	time.Sleep(1100 * time.Millisecond) // for a second the kernel keeps what it has just learnt
	l.attack("net-send", "eth0")
	for what, at := range map[string]struct{ entries, ip, mac string }{
		"the node's entry for the victim":         {l.n.Enter("ip", "neigh", "show", "dev", "subpod0"), victim.V4.String(), net.HardwareAddr(victim.MAC[:]).String()},
		"the node's IPv6 entry for the victim":    {l.n.Enter("ip", "-6", "neigh", "show", "dev", "subpod0"), victim.V6.String(), net.HardwareAddr(victim.MAC[:]).String()},
		"another pod's entry for the victim":      {l.exec(l.peer, "cat", "/proc/net/arp"), victim.V4.String(), net.HardwareAddr(victim.MAC[:]).String()},
		"another pod's entry for its own gateway": {l.exec(l.peer, "cat", "/proc/net/arp"), gateway.V4.String(), net.HardwareAddr(gateway.MAC[:]).String()},
	} {
		found := false
		for line := range strings.Lines(at.entries) {
			if strings.HasPrefix(line, at.ip+" ") {
				found = true
				if !strings.Contains(line, at.mac) {
					l.Errorf("%s: %s, want %s", what, strings.TrimSpace(line), at.mac)
				}
			}
		}
		if !found {
			l.Errorf("%s: none in:\n%s", what, at.entries)
		}
	}
	reach()
}

// tryHardwareAddresses sends frames with thousands of hardware addresses, and with the
// victim's, by the ways that pass a bridge's filters and by those that do not.
func (l link) tryHardwareAddresses() {
	database := func() []string {
		var out []string
		for line := range strings.Lines(l.n.Enter("bridge", "fdb", "show", "br", "subpod0")) {
			if !strings.Contains(line, "permanent") {
				out = append(out, line)
			}
		}
		return out
	}
	before := database()
	l.attack("net-flood", "eth0")
	after := database()
	if len(after) > len(before)+2 {
		l.Errorf("the bridge has learnt %d hardware addresses from a pod", len(after)-len(before))
	}
	port := func(list []string) string {
		for _, line := range list {
			if strings.HasPrefix(line, net.HardwareAddr(l.ends.Victim.MAC[:]).String()) {
				return strings.Fields(line)[2]
			}
		}
		return ""
	}
	if port(before) == "" || port(after) != port(before) {
		l.Errorf("frames to the victim go to bridge port %q, before the attack to %q", port(after), port(before))
	}
}

// tryReserved sends datagrams with a neighbour's address to the node in frames that a
// bridge hands over without any of its filters.
func (l link) tryReserved() {
	const port = "12345"
	heard := l.inNode("net-datagrams", port)
	l.attack("net-reserved", port)
	if got := heard(); got != "own\n" {
		l.Errorf("the node gets the datagrams %q, want that with the pod's own address alone", got)
	}
}

// packetSocket opens a packet socket for frames of all protocols on an interface.
func packetSocket(ifname string) (fd int, err error) {
	link, err := net.InterfaceByName(ifname)
	if err != nil {
		return -1, err
	}
	const all = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8 // in network byte order
	fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, all)
	if err != nil {
		return -1, err
	}
	return fd, unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: link.Index})
}

// lastFrame is an allowed one of the attacker's.
func (l linkEnds) lastFrame() []byte {
	a := l.Attacker
	return append(ether(broadcast, a.MAC, typeIPv4), ipv4(a.V4, everyone, udp(a.V4, everyone, 9, 9, lastMark))...)
}

// sendFrames sends every frame three times.
func sendFrames(l linkEnds, ifname string) error {
	fd, err := packetSocket(ifname)
	if err != nil {
		return err
	}
	for range 3 {
		for _, f := range l.frames() {
			if _, err := unix.Write(fd, f.data); err != nil {
				return fmt.Errorf("%s: %w", f.name, err)
			}
		}
	}
	_, err = unix.Write(fd, l.lastFrame())
	return err
}

// listenFrames prints the names of the frames that arrive, until the last one.
func listenFrames(l linkEnds, ifname string) error {
	fd, err := packetSocket(ifname)
	if err != nil {
		return err
	}
	patience := unix.NsecToTimeval(int64(30 * time.Second))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &patience); err != nil {
		return err
	}
	fmt.Print(readyLine)
	seen := map[string]bool{}
	for buf := make([]byte, 4096); ; {
		n, err := unix.Read(fd, buf)
		if err != nil {
			return err
		}
		for _, f := range l.frames() {
			if got := buf[:n]; bytes.HasPrefix(got, f.data) || bytes.HasPrefix(got, untagged(f.data)) {
				seen[f.name] = true
			}
		}
		if bytes.HasPrefix(buf[:n], l.lastFrame()) {
			break
		}
	}
	for name := range seen {
		fmt.Println(name)
	}
	fmt.Println(lastMark)
	return nil
}

// floodBridge sends frames with 4,000 hardware addresses, and with the victim's, also
// to the addresses that a bridge treats by itself.
func floodBridge(l linkEnds, ifname string) error {
	fd, err := packetSocket(ifname)
	if err != nil {
		return err
	}
	for _, to := range []hwAddr{broadcast, {0x01, 0x80, 0xc2, 0, 0, 0}, {0x01, 0x80, 0xc2, 0, 0, 0x0e}, {0x01, 0x80, 0xc2, 0, 0, 3}} {
		from := []hwAddr{l.Victim.MAC}
		for i := range 1000 {
			from = append(from, hwAddr{0x02, to[5], 0, 0, byte(i >> 8), byte(i)})
		}
		for _, mac := range append(from, l.Victim.MAC) {
			data := append(ether(to, mac, typeIPv4), ipv4(l.Attacker.V4, everyone, udp(l.Attacker.V4, everyone, 9, 9, "flood"))...)
			if _, err := unix.Write(fd, data); err != nil {
				return err
			}
		}
	}
	return nil
}

// sendReserved sends datagrams to the gateway in frames to the hardware addresses that
// bridges treat by themselves (IEEE 802.1D), and an honest one at the end.
func sendReserved(l linkEnds, port string) error {
	fd, err := packetSocket("eth0")
	if err != nil {
		return err
	}
	a, g := l.Attacker, l.Gateway
	to := netip.MustParseAddrPort(g.V4.String() + ":" + port)
	for last := range 16 {
		reserved := hwAddr{0x01, 0x80, 0xc2, 0, 0, byte(last)}
		for _, from := range []netip.Addr{l.Victim.V4, a.V4.Prev(), netip.MustParseAddr("192.0.2.9")} {
			data := append(ether(reserved, a.MAC, typeIPv4), ipv4(from, to.Addr(), udp(from, to.Addr(), 9, to.Port(), "forged"))...)
			if _, err := unix.Write(fd, data); err != nil {
				return err
			}
		}
	}
	data := append(ether(g.MAC, a.MAC, typeIPv4), ipv4(a.V4, to.Addr(), udp(a.V4, to.Addr(), 9, to.Port(), "own"))...)
	_, err = unix.Write(fd, data)
	return err
}

// reach connects to a port of each of those named, which answers that nobody listens.
func reach(l linkEnds, names string) error {
	ends := map[string]linkEnd{"victim": l.Victim, "gateway": l.Gateway}
	for _, name := range strings.Fields(names) {
		for _, a := range []netip.Addr{ends[name].V4, ends[name].V6} {
			c, err := net.DialTimeout("tcp", netip.AddrPortFrom(a, 9).String(), 20*time.Second)
			if err == nil {
				c.Close()
			} else if !errors.Is(err, unix.ECONNREFUSED) {
				return err
			}
		}
	}
	return nil
}

// listenDatagrams prints the datagrams that come to a port, until an honest one.
func listenDatagrams(_ linkEnds, port string) error {
	c, err := net.ListenPacket("udp4", ":"+port)
	if err != nil {
		return err
	}
	if err := c.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		return err
	}
	fmt.Print(readyLine)
	for buf := make([]byte, 100); ; {
		n, _, err := c.ReadFrom(buf)
		if err != nil {
			return err
		}
		fmt.Println(string(buf[:n]))
		if string(buf[:n]) == "own" {
			return nil
		}
	}
}
