package tunnel

import (
	"net/netip"
	"slices"
	"sync/atomic"

	"golang.zx2c4.com/wireguard/tun"
)

// inbound is a device that takes from peers what is for this node only: a peer that is not
// what it should be must not use the node as a router to the host's network.
type inbound struct {
	tun.Device
	own atomic.Pointer[[]netip.Prefix]
}

// Write implements tun.Device. What is for others is dropped.
func (d *inbound) Write(packets [][]byte, offset int) (int, error) {
	own := d.own.Load()
	if own == nil {
		return len(packets), nil
	}
	mine := slices.DeleteFunc(packets, func(p []byte) bool {
		to, ok := destination(p[offset:])
		return !ok || !slices.ContainsFunc(*own, func(o netip.Prefix) bool { return o.Contains(to) })
	})
	if len(mine) == 0 {
		return 0, nil
	}
	return d.Device.Write(mine, offset)
}

// destination reads the destination address of a packet.
func destination(packet []byte) (netip.Addr, bool) {
	switch {
	case len(packet) >= 20 && packet[0]>>4 == 4:
		return netip.AddrFromSlice(packet[16:20])
	case len(packet) >= 40 && packet[0]>>4 == 6:
		return netip.AddrFromSlice(packet[24:40])
	}
	return netip.Addr{}, false
}
