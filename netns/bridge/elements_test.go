package bridge

import (
	"fmt"
	"net"
	"net/netip"
	"testing"

	"github.com/google/nftables"

	"github.com/subpod/subpod/tests/nettest"
)

// TestManyPods: the rules of a thousand pods, and of thousands of host ports, are written
// at once, as a server does at its start, and taken back.
func TestManyPods(t *testing.T) {
	w := newWorld(t)
	b := w.bridge(Options{Isolate: true})
	const pods = 1000
	for i := range pods {
		port := fmt.Sprintf("%s%0*d", vethPrefix, 15-len(vethPrefix), i)
		mac := net.HardwareAddr{2, 0, 0, 0, byte(i >> 8), byte(i)}
		addrs := []netip.Addr{netip.AddrFrom4([4]byte{10, 88, byte(i >> 8), byte(i)})}
		b.security.note(port, sendersOf(mac, addrs))
		b.isolate.note(isolatedPort{name: port, namespace: uint32(i + 1)})
	}
	nettest.Must(t, b.security.write())
	nettest.Must(t, b.isolate.write())
	var ports []element
	for i := range 3 * pods {
		ports = append(ports, element{portKey: portKey{hostIP: netip.IPv4Unspecified(), proto: "tcp", port: uint16(10000 + i)}, target: netip.MustParseAddrPort("10.88.0.2:80")})
	}
	nettest.Must(t, b.rules.add(ports))
	nettest.Must(t, b.rules.write())
	senders4, senders6 := securitySets(b.nft.securityTable())
	namespaces, members := isolationSets(b.nft.isolationTable())
	mapped := newSets(b.nft.podTable()).ports4
	count := func(s *nftables.Set, want int) {
		t.Helper()
		nettest.Must(t, b.nft.transact(func(c *nftables.Conn) error {
			elements, err := c.GetSetElements(s)
			if len(elements) != want {
				t.Errorf("set %s has %d elements, want %d", s.Name, len(elements), want)
			}
			return err
		}))
	}
	for _, s := range []*nftables.Set{senders4, senders6, namespaces, members} {
		count(s, pods)
	}
	count(mapped, 3*pods)
	nettest.Must(t, b.rules.remove(ports))
	count(mapped, 0)
}
