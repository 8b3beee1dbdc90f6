package attack

import (
	"encoding/binary"
	"net/netip"
)

// hwAddr is a hardware address.
type hwAddr [6]byte

// linkEnds are the addresses that the attacks on the pod network are made of: the
// attacker's, those of the pod that it plays, and the gateway's.
type linkEnds struct {
	Attacker, Victim, Gateway linkEnd
}

// linkEnd is who has a place on the bridge.
type linkEnd struct {
	MAC    hwAddr
	V4, V6 netip.Addr
}

// local returns the link-local address that goes with the hardware address.
func (e linkEnd) local() netip.Addr {
	m := e.MAC
	return netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80, 8: m[0] ^ 2, 9: m[1], 10: m[2], 11: 0xff, 12: 0xfe, 13: m[3], 14: m[4], 15: m[5]})
}

// frame is an Ethernet frame. Allowed ones must arrive, which shows that the others
// could be seen, too.
type frame struct {
	name    string
	data    []byte
	allowed bool
}

var (
	broadcast   = hwAddr{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	allNodesMAC = hwAddr{0x33, 0x33, 0, 0, 0, 1}
	allNodes    = netip.MustParseAddr("ff02::1")
	everyone    = netip.MustParseAddr("255.255.255.255")
	foreign     = hwAddr{0x02, 0xba, 0xdb, 0xad, 0, 1}
)

const (
	typeIPv4, typeARP, typeIPv6, typeVLAN, typeQinQ, typeRARP, typeMPLS = 0x0800, 0x0806, 0x86dd, 0x8100, 0x88a8, 0x8035, 0x8847

	protoUDP, protoICMP6, hopByHop, fragment = 17, 58, 0, 44
)

// frames returns all that the attacker sends, to everybody on the link.
func (l linkEnds) frames() []frame {
	var out []frame
	out = append(out, l.arpFrames()...)
	out = append(out, l.discoveryFrames()...)
	out = append(out, l.sourceFrames()...)
	return append(out, l.otherFrames()...)
}

func (l linkEnds) arpFrames() []frame {
	a, v, g := l.Attacker, l.Victim, l.Gateway
	const request, reply = 1, 2
	// A reply with another length of addresses: the fields lie elsewhere.
	odd := arp(a.MAC, reply, a.MAC, a.V4, a.V4)
	odd[14+4] = 8
	return []frame{
		{"own ARP request", arp(a.MAC, request, a.MAC, a.V4, v.V4), true},
		{"own gratuitous ARP", arp(a.MAC, reply, a.MAC, a.V4, a.V4), true},
		{"ARP reply for a neighbour", arp(a.MAC, reply, a.MAC, v.V4, a.V4), false},
		{"ARP request as a neighbour", arp(a.MAC, request, a.MAC, v.V4, g.V4), false},
		{"gratuitous ARP for a neighbour", arp(a.MAC, request, a.MAC, v.V4, v.V4), false},
		{"ARP reply for the gateway", arp(a.MAC, reply, a.MAC, g.V4, a.V4), false},
		{"gratuitous ARP for the gateway", arp(a.MAC, reply, a.MAC, g.V4, g.V4), false},
		{"ARP for an address of nobody", arp(a.MAC, reply, a.MAC, a.V4.Next().Next().Next(), a.V4), false},
		{"ARP with a neighbour's hardware address", arp(a.MAC, reply, v.MAC, a.V4, a.V4), false},
		{"ARP in a frame of a neighbour", arp(v.MAC, reply, v.MAC, v.V4, a.V4), false},
		{"ARP in a frame of nobody", arp(foreign, reply, a.MAC, a.V4, a.V4), false},
		{"ARP probe for a neighbour's address", arp(a.MAC, request, a.MAC, netip.IPv4Unspecified(), v.V4), false},
		{"ARP with odd lengths", odd, false},
		{"RARP", append(ether(broadcast, a.MAC, typeRARP), arp(a.MAC, 3, a.MAC, a.V4, a.V4)[14:]...), false},
	}
}

// discoveryFrames are those of neighbour discovery (RFC 4861).
func (l linkEnds) discoveryFrames() []frame {
	a, v, g := l.Attacker, l.Victim, l.Gateway
	const solicitation, advertisement, routerAdvertisement, redirect = 135, 136, 134, 137
	const sourceOption, targetOption, nonce = 1, 2, 14
	own := func(kind byte, body []byte) []byte { return icmp6(a.MAC, a.V6, kind, body) }
	nd := func(target netip.Addr, options ...[]byte) []byte {
		body := make([]byte, 4, 64)
		body[0] = 0x60 // solicited, override
		body = append(body, target.AsSlice()...)
		for _, o := range options {
			body = append(body, o...)
		}
		return body
	}
	mac := func(kind byte, m hwAddr) []byte { return append([]byte{kind, 1}, m[:]...) }
	router := append([]byte{64, 0, 7, 8}, make([]byte, 8)...)
	hidden := func(header byte, ext []byte, kind byte, body []byte) []byte {
		message := icmp6Message(a.V6, allNodes, kind, body)
		return append(ether(allNodesMAC, a.MAC, typeIPv6), ipv6(a.V6, allNodes, header, append(ext, message...))...)
	}
	pad := []byte{protoICMP6, 0, 1, 4, 0, 0, 0, 0}
	atom := []byte{protoICMP6, 0, 0, 0, 0, 0, 0, 1}
	return []frame{
		{"own neighbour advertisement", own(advertisement, nd(a.V6, mac(targetOption, a.MAC))), true},
		{"own neighbour advertisement, plain", own(advertisement, nd(a.V6)), true},
		{"own neighbour solicitation", own(solicitation, nd(v.V6, mac(sourceOption, a.MAC))), true},
		{"own link-local advertisement", icmp6(a.MAC, a.local(), advertisement, nd(a.local(), mac(targetOption, a.MAC))), true},
		{"advertisement for a neighbour", own(advertisement, nd(v.V6, mac(targetOption, a.MAC))), false},
		{"advertisement for a neighbour, plain", own(advertisement, nd(v.V6)), false},
		{"advertisement for the gateway", own(advertisement, nd(g.V6, mac(targetOption, a.MAC))), false},
		{"advertisement for a neighbour's link-local address", own(advertisement, nd(v.local(), mac(targetOption, a.MAC))), false},
		{"advertisement with a neighbour's hardware address", own(advertisement, nd(a.V6, mac(targetOption, v.MAC))), false},
		{"advertisement with two hardware addresses", own(advertisement, nd(a.V6, mac(targetOption, a.MAC), mac(targetOption, v.MAC))), false},
		{"advertisement with another option first", own(advertisement, nd(a.V6, append([]byte{nonce, 1}, 0, 0, 0, 0, 0, 0), mac(targetOption, v.MAC))), false},
		{"advertisement behind an extension header", hidden(hopByHop, pad, advertisement, nd(v.V6, mac(targetOption, a.MAC))), false},
		{"advertisement in a fragment", hidden(fragment, atom, advertisement, nd(v.V6, mac(targetOption, a.MAC))), false},
		{"solicitation as a neighbour", icmp6(a.MAC, v.V6, solicitation, nd(g.V6, mac(sourceOption, a.MAC))), false},
		{"solicitation with a neighbour's hardware address", own(solicitation, nd(g.V6, mac(sourceOption, v.MAC))), false},
		{"solicitation of nobody (duplicate address)", icmp6(a.MAC, netip.IPv6Unspecified(), solicitation, nd(v.V6)), false},
		{"router advertisement", icmp6(a.MAC, a.local(), routerAdvertisement, append(router, mac(sourceOption, a.MAC)...)), false},
		{"router advertisement behind an extension header", hidden(hopByHop, pad, routerAdvertisement, router), false},
		{"router advertisement as the gateway", icmp6(a.MAC, g.local(), routerAdvertisement, router), false},
		{"redirect", icmp6(a.MAC, a.local(), redirect, nd(a.V6, v.V6.AsSlice())), false},
		{"multicast listener query", icmp6(a.MAC, a.local(), 130, make([]byte, 20)), false},
	}
}

// sourceFrames have the source address of somebody else, or are a server's.
func (l linkEnds) sourceFrames() []frame {
	a, v, g := l.Attacker, l.Victim, l.Gateway
	four := func(mac hwAddr, from netip.Addr, port uint16, mark string) []byte {
		return append(ether(broadcast, mac, typeIPv4), ipv4(from, everyone, udp(from, everyone, port, 9, mark))...)
	}
	six := func(mac hwAddr, from netip.Addr, port uint16, mark string) []byte {
		return append(ether(allNodesMAC, mac, typeIPv6), ipv6(from, allNodes, protoUDP, udp(from, allNodes, port, 9, mark))...)
	}
	at := netip.MustParseAddr
	return []frame{
		{"own IPv4", four(a.MAC, a.V4, 9, "4"), true},
		{"own IPv6", six(a.MAC, a.V6, 9, "6"), true},
		{"own link-local IPv6", six(a.MAC, a.local(), 9, "l"), true},
		{"IPv4 of a neighbour", four(a.MAC, v.V4, 9, "4v"), false},
		{"IPv4 of the gateway", four(a.MAC, g.V4, 9, "4g"), false},
		{"IPv4 of the world", four(a.MAC, at("192.0.2.9"), 9, "4w"), false},
		{"IPv4 of loopback", four(a.MAC, at("127.0.0.1"), 9, "4l"), false},
		{"IPv4 of nobody", four(a.MAC, at("0.0.0.0"), 68, "4n"), false},
		{"IPv4 in a frame of a neighbour", four(v.MAC, a.V4, 9, "4f"), false},
		{"IPv4 and frame of a neighbour", four(v.MAC, v.V4, 9, "4b"), false},
		{"IPv6 of a neighbour", six(a.MAC, v.V6, 9, "6v"), false},
		{"IPv6 of a neighbour's link-local address", six(a.MAC, v.local(), 9, "6vl"), false},
		{"IPv6 of the gateway", six(a.MAC, g.V6, 9, "6g"), false},
		{"IPv6 of the world", six(a.MAC, at("2001:db8::9"), 9, "6w"), false},
		{"IPv6 of nobody", six(a.MAC, at("::"), 9, "6n"), false},
		{"IPv6 in a frame of a neighbour", six(v.MAC, a.V6, 9, "6f"), false},
		{"DHCP answer", four(a.MAC, a.V4, 67, "dhcp"), false},
		{"DHCPv6 answer", six(a.MAC, a.local(), 547, "dhcp6"), false},
	}
}

// otherFrames are none of ARP, IPv4 and IPv6, or have a tag.
func (l linkEnds) otherFrames() []frame {
	a := l.Attacker
	inner := func(mark string) []byte {
		return append([]byte{0x08, 0x00}, ipv4(a.V4, everyone, udp(a.V4, everyone, 9, 9, mark))...)
	}
	tagged := func(kind uint16, mark string) []byte {
		return append(append(ether(broadcast, a.MAC, kind), 0, 5), inner(mark)...)
	}
	double := append(append(ether(broadcast, a.MAC, typeQinQ), 0, 5, 0x81, 0, 0, 6), inner("qq")...)
	llc := append(ether(broadcast, a.MAC, 40), 0xaa, 0xaa, 3, 0, 0, 0)
	return []frame{
		{"VLAN tag", tagged(typeVLAN, "vlan"), false},
		{"priority tag", append(append(ether(broadcast, a.MAC, typeVLAN), 0, 0), inner("prio")...), false},
		{"service VLAN tag", tagged(typeQinQ, "qinq"), false},
		{"two VLAN tags", double, false},
		{"unknown protocol", append(ether(broadcast, a.MAC, 0x88b5), make([]byte, 46)...), false},
		{"MPLS", append(append(ether(broadcast, a.MAC, typeMPLS), 0, 1, 1, 64), inner("mpls")[2:]...), false},
		{"LLC/SNAP", append(llc, inner("snap")...), false},
	}
}

// untagged returns the frame as a packet socket shows it: without the outer VLAN tag.
func untagged(f []byte) []byte {
	if kind := binary.BigEndian.Uint16(f[12:]); kind != typeVLAN && kind != typeQinQ {
		return f
	}
	return append(append([]byte{}, f[:12]...), f[16:]...)
}

func ether(to, from hwAddr, kind uint16) []byte {
	return binary.BigEndian.AppendUint16(append(to[:], from[:]...), kind)
}

// arp returns a broadcast frame of the hardware address from.
func arp(from hwAddr, op byte, mac hwAddr, ip, target netip.Addr) []byte {
	f := append(ether(broadcast, from, typeARP), 0, 1, 8, 0, 6, 4, 0, op)
	f = append(append(f, mac[:]...), ip.AsSlice()...)
	f = append(append(f, make([]byte, 6)...), target.AsSlice()...)
	return f
}

func ipv4(from, to netip.Addr, payload []byte) []byte {
	h := []byte{0x45, 0, 0, 0, 0, 0, 0, 0, 64, protoUDP, 0, 0}
	binary.BigEndian.PutUint16(h[2:], uint16(20+len(payload)))
	h = append(append(h, from.AsSlice()...), to.AsSlice()...)
	binary.BigEndian.PutUint16(h[10:], ^sum(0, h))
	return append(h, payload...)
}

func ipv6(from, to netip.Addr, next byte, payload []byte) []byte {
	h := []byte{0x60, 0, 0, 0, 0, 0, next, 255}
	binary.BigEndian.PutUint16(h[4:], uint16(len(payload)))
	h = append(append(h, from.AsSlice()...), to.AsSlice()...)
	return append(h, payload...)
}

func udp(from, to netip.Addr, source, port uint16, text string) []byte {
	p := binary.BigEndian.AppendUint16(nil, source)
	p = binary.BigEndian.AppendUint16(p, port)
	p = binary.BigEndian.AppendUint16(p, uint16(8+len(text)))
	p = append(append(p, 0, 0), text...)
	binary.BigEndian.PutUint16(p[6:], checksum(from, to, protoUDP, p))
	return p
}

// icmp6 returns a frame to all nodes.
func icmp6(mac hwAddr, from netip.Addr, kind byte, body []byte) []byte {
	return append(ether(allNodesMAC, mac, typeIPv6), ipv6(from, allNodes, protoICMP6, icmp6Message(from, allNodes, kind, body))...)
}

func icmp6Message(from, to netip.Addr, kind byte, body []byte) []byte {
	m := append([]byte{kind, 0, 0, 0}, body...)
	binary.BigEndian.PutUint16(m[2:], checksum(from, to, protoICMP6, m))
	return m
}

// checksum is that of transport protocols, over their pseudo header as well.
func checksum(from, to netip.Addr, proto byte, message []byte) uint16 {
	pseudo := append(from.AsSlice(), to.AsSlice()...)
	pseudo = append(pseudo, 0, proto, byte(len(message)>>8), byte(len(message)))
	return ^sum(uint32(sum(0, pseudo)), message)
}

func sum(start uint32, data []byte) uint16 {
	total := start
	for i, b := range data {
		if i%2 == 0 {
			total += uint32(b) << 8
		} else {
			total += uint32(b)
		}
	}
	for total > 0xffff {
		total = total>>16 + total&0xffff
	}
	return uint16(total)
}
