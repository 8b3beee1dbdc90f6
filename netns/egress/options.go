package egress

import (
	"sync"

	"golang.org/x/sys/unix"
)

// option is a socket option that is a number.
type option struct{ level, name int }

// carried are the options that a switched socket has from the one that it replaces, where that
// differs from a new one. Beside them: the file's status flags, SO_LINGER, time limits, sizes of buffers
// that were set, and the congestion control. What is not here (SO_MARK, SO_BINDTODEVICE, filters
// …) has no meaning in another network, and most of it keeps a socket from being switched.
var carried = map[int][]option{
	unix.AF_UNSPEC: {
		{unix.SOL_SOCKET, unix.SO_KEEPALIVE}, {unix.SOL_SOCKET, unix.SO_OOBINLINE}, {unix.SOL_SOCKET, unix.SO_PRIORITY},
		{unix.SOL_SOCKET, unix.SO_RCVLOWAT}, {unix.SOL_SOCKET, unix.SO_ZEROCOPY}, {unix.SOL_SOCKET, unix.SO_TIMESTAMPNS_NEW},
		{unix.SOL_SOCKET, unix.SO_TIMESTAMP_NEW}, {unix.SOL_SOCKET, unix.SO_BUSY_POLL},
		{unix.IPPROTO_TCP, unix.TCP_NODELAY}, {unix.IPPROTO_TCP, unix.TCP_CORK}, {unix.IPPROTO_TCP, unix.TCP_KEEPIDLE},
		{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL}, {unix.IPPROTO_TCP, unix.TCP_KEEPCNT}, {unix.IPPROTO_TCP, unix.TCP_SYNCNT},
		{unix.IPPROTO_TCP, unix.TCP_LINGER2}, {unix.IPPROTO_TCP, unix.TCP_WINDOW_CLAMP},
		{unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT}, {unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT}, {unix.IPPROTO_TCP, unix.TCP_INQ},
		{unix.IPPROTO_TCP, unix.TCP_THIN_LINEAR_TIMEOUTS},
	},
	unix.AF_INET: {
		{unix.IPPROTO_IP, unix.IP_TOS}, {unix.IPPROTO_IP, unix.IP_TTL}, {unix.IPPROTO_IP, unix.IP_RECVTOS},
		{unix.IPPROTO_IP, unix.IP_MTU_DISCOVER}, {unix.IPPROTO_IP, unix.IP_RECVERR},
	},
	unix.AF_INET6: {
		{unix.IPPROTO_IPV6, unix.IPV6_V6ONLY}, {unix.IPPROTO_IPV6, unix.IPV6_TCLASS}, {unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS},
		{unix.IPPROTO_IPV6, unix.IPV6_RECVTCLASS}, {unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER}, {unix.IPPROTO_IPV6, unix.IPV6_RECVERR},
		{unix.IPPROTO_IP, unix.IP_TOS}, {unix.IPPROTO_IP, unix.IP_TTL},
	},
}

// fresh has the values of new sockets, by family and option.
var fresh = sync.OnceValue(func() map[int]map[option]int {
	all := map[int]map[option]int{}
	for _, domain := range []int{unix.AF_INET, unix.AF_INET6} {
		fd, err := unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
		if err != nil {
			continue
		}
		values := map[option]int{}
		for _, o := range options(domain) {
			if v, err := unix.GetsockoptInt(fd, o.level, o.name); err == nil {
				values[o] = v
			}
		}
		unix.Close(fd)
		all[domain] = values
	}
	return all
})

func options(domain int) []option {
	return append(append([]option{}, carried[unix.AF_UNSPEC]...), carried[domain]...)
}

// carryOptions gives a new socket the options of another one. What the kernel does not take
// there is left out: options say how well a connection goes, not where to.
func carryOptions(domain, from, to int) {
	for o, usual := range fresh()[domain] {
		if v, err := unix.GetsockoptInt(from, o.level, o.name); err == nil && v != usual {
			_ = unix.SetsockoptInt(to, o.level, o.name, v)
		}
	}
	if l, err := unix.GetsockoptLinger(from, unix.SOL_SOCKET, unix.SO_LINGER); err == nil && l.Onoff != 0 {
		_ = unix.SetsockoptLinger(to, unix.SOL_SOCKET, unix.SO_LINGER, l)
	}
	for _, name := range []int{unix.SO_RCVTIMEO, unix.SO_SNDTIMEO} {
		if tv, err := unix.GetsockoptTimeval(from, unix.SOL_SOCKET, name); err == nil && (tv.Sec != 0 || tv.Usec != 0) {
			_ = unix.SetsockoptTimeval(to, unix.SOL_SOCKET, name, tv)
		}
	}
	// The kernel returns twice what was set. Setting one ends its own choice.
	locked, _ := unix.GetsockoptInt(from, unix.SOL_SOCKET, unix.SO_BUF_LOCK)
	for bit, name := range map[int]int{1: unix.SO_SNDBUF, 2: unix.SO_RCVBUF} {
		if v, err := unix.GetsockoptInt(from, unix.SOL_SOCKET, name); err == nil && locked&bit != 0 {
			_ = unix.SetsockoptInt(to, unix.SOL_SOCKET, name, v/2)
		}
	}
	theirs, err := unix.GetsockoptString(from, unix.IPPROTO_TCP, unix.TCP_CONGESTION)
	if ours, err2 := unix.GetsockoptString(to, unix.IPPROTO_TCP, unix.TCP_CONGESTION); err == nil && err2 == nil && ours != theirs {
		_ = unix.SetsockoptString(to, unix.IPPROTO_TCP, unix.TCP_CONGESTION, theirs)
	}
}
