package bridge

import (
	"net/netip"
	"slices"

	"github.com/subpod/subpod/netns"
)

// ServiceAddress returns the address on which the pod with the address is reached by the
// ports of its service with the number. It is of the family of addr, in a range that
// leads nowhere else: 240.0.0.0/4 (RFC 1112, 4) or a part of fc00::/7. Only pods of the
// same network are led from there to the pod, so that two networks may have the same.
// False for a number that is too big.
func ServiceAddress(addr netip.Addr, number int) (netip.Addr, bool) {
	b := addr.AsSlice()
	if addr.Is4() {
		if number < 0 || number > 14 {
			return netip.Addr{}, false
		}
		b[0] = 240 + byte(number) // 255.… are broadcasts
	} else {
		if number < 0 || number > 255 {
			return netip.Addr{}, false
		}
		copy(b, []byte{0xfd, 0x5e, 0x12, 0x71, 0xce, 0, 0, byte(number)})
	}
	out, _ := netip.AddrFromSlice(b)
	return out, true
}

// Remapped reports whether a port of the service is another one than that of the pod, so
// that the service needs an address of its own.
func Remapped(s netns.Service) bool {
	return slices.ContainsFunc(s.Ports, func(p netns.ServicePort) bool { return p.Port != p.TargetPort })
}

// serviceElements returns the entries of a pod's services, from their addresses to the
// pod.
func serviceElements(services []netns.Service, ips []netip.Addr) []element {
	var out []element
	for number, s := range services {
		if !Remapped(s) {
			continue
		}
		for _, ip := range ips {
			address, ok := ServiceAddress(ip, number)
			if !ok {
				continue
			}
			for _, p := range s.Ports {
				e := element{portKey{p.Proto, address, p.Port}, netip.AddrPortFrom(ip, p.TargetPort), true}
				if !slices.Contains(out, e) {
					out = append(out, e)
				}
			}
		}
	}
	return out
}
