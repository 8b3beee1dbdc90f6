package bridge

import (
	"fmt"
	"math"

	"github.com/subpod/subpod/netns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// limitIngress limits the traffic to the pod: what the node's end of its link sends.
func (l *links) limitIngress(pod netns.Pod, mtu int) error {
	if pod.IngressRate == 0 {
		return nil
	}
	link, err := l.rt.LinkByName(l.names.link(pod.ID))
	if err != nil {
		return fmt.Errorf("limit the pod's ingress: %w", err)
	}
	return limit(l.rt, link, pod.IngressRate, mtu)
}

// limitEgress limits the traffic from the pod, whose network namespace is the calling
// thread's.
func limitEgress(link netlink.Link, rate uint64, mtu int) error {
	if rate == 0 {
		return nil
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer h.Close()
	return limit(h, link, rate, mtu)
}

// limit gives the link a token bucket for what it sends (tc-tbf(8)). rate is in
// bits per second.
func limit(h *netlink.Handle, link netlink.Link, rate uint64, mtu int) error {
	bytes := max(rate/8, 1)
	// Enough for a tick of the slowest clock (100 Hz), and for the biggest packet
	// with its header, which could never pass otherwise.
	burst := max(bytes/100, uint64(2*mtu+128))
	ticks := float64(burst) / float64(bytes) * 1e6 * netlink.TickInUsec()
	// What may wait: 25 ms worth of traffic beside the burst.
	queue := burst + bytes/40
	err := h.QdiscReplace(&netlink.Tbf{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: link.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT},
		Rate:       bytes,
		Buffer:     uint32(min(ticks, math.MaxUint32)),
		Limit:      uint32(min(queue, math.MaxUint32)),
	})
	if err != nil {
		return fmt.Errorf("limit %s to %d bit/s: %w", link.Attrs().Name, rate, err)
	}
	return nil
}
