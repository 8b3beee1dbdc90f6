package bridge

import (
	"errors"
	"fmt"
	"math"

	"github.com/subpod/subpod/netns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// limitIngress limits the traffic to the pod: what the node's end of its link sends.
func (b *Bridge) limitIngress(pod netns.Pod, mtu int) error {
	if pod.IngressRate == 0 {
		return nil
	}
	link, err := b.links.rt.LinkByName(vethName(pod.ID))
	if err != nil {
		return fmt.Errorf("limit the pod's ingress: %w", err)
	}
	return limit(b.links.rt, link, pod.IngressRate, mtu)
}

// limit gives the link a token bucket for what it sends (tc-tbf(8)). rate is in
// bits per second, 0 for none.
func limit(h *netlink.Handle, link netlink.Link, rate uint64, mtu int) error {
	if rate == 0 {
		return nil
	}
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

// silence stops the pod's bridge port, without the delays of taking the link
// down. One that is gone, in no bridge or down already is fine.
func (b *Bridge) silence(name string) error {
	link, err := b.links.rt.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) || (err == nil && link.Attrs().MasterIndex == 0) {
		return nil
	}
	if err == nil {
		err = b.links.raw.setPort(link.Attrs().Index, portState(portDisabled))
	}
	if err != nil && !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.ENETDOWN) {
		return fmt.Errorf("stop bridge port %s: %w", name, err)
	}
	return nil
}
