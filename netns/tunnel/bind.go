package tunnel

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/net/ipv4"
	"golang.zx2c4.com/wireguard/conn"
)

// bind is a conn.Bind of a socket that somebody else has opened, in another network
// namespace: opening and closing it only lets receivers go on, and stop.
type bind struct {
	udp   *net.UDPConn
	batch *ipv4.PacketConn // the same socket, of either family: many messages a call
	port  uint16
}

func newBind(udp *net.UDPConn) (*bind, error) {
	local, ok := udp.LocalAddr().(*net.UDPAddr)
	if !ok {
		return nil, fmt.Errorf("the tunnel's socket has the address %v", udp.LocalAddr())
	}
	return &bind{udp: udp, batch: ipv4.NewPacketConn(udp), port: local.AddrPort().Port()}, nil
}

// Open implements conn.Bind. The port is the socket's.
func (b *bind) Open(uint16) ([]conn.ReceiveFunc, uint16, error) {
	if err := b.udp.SetReadDeadline(time.Time{}); err != nil {
		return nil, 0, err
	}
	messages := make([]ipv4.Message, conn.IdealBatchSize)
	for i := range messages {
		messages[i].Buffers = make([][]byte, 1)
	}
	receive := func(packets [][]byte, sizes []int, from []conn.Endpoint) (int, error) {
		return b.receive(messages[:len(packets)], packets, sizes, from)
	}
	return []conn.ReceiveFunc{receive}, b.port, nil
}

func (b *bind) receive(messages []ipv4.Message, packets [][]byte, sizes []int, from []conn.Endpoint) (int, error) {
	for i := range messages {
		messages[i].Buffers[0] = packets[i]
	}
	n, err := b.batch.ReadBatch(messages, 0)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return 0, net.ErrClosed // Close
	}
	if err != nil {
		return 0, err
	}
	for i := range n {
		sizes[i] = messages[i].N
		from[i] = &conn.StdNetEndpoint{}
		if a, ok := messages[i].Addr.(*net.UDPAddr); ok {
			ap := a.AddrPort()
			from[i] = &conn.StdNetEndpoint{AddrPort: netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())}
		}
	}
	return n, nil
}

// Close implements conn.Bind: it ends the receivers.
func (b *bind) Close() error { return b.udp.SetReadDeadline(time.Unix(1, 0)) }

// SetMark implements conn.Bind. The socket is in a network namespace without such marks.
func (b *bind) SetMark(uint32) error { return nil }

// Send implements conn.Bind.
func (b *bind) Send(packets [][]byte, to conn.Endpoint) error {
	e, ok := to.(*conn.StdNetEndpoint)
	if !ok {
		return conn.ErrWrongEndpointType
	}
	messages := make([]ipv4.Message, len(packets))
	address := net.UDPAddrFromAddrPort(e.AddrPort)
	for i, p := range packets {
		messages[i].Buffers, messages[i].Addr = [][]byte{p}, address
	}
	for len(messages) > 0 {
		n, err := b.batch.WriteBatch(messages, 0)
		if err != nil {
			return err
		}
		messages = messages[n:]
	}
	return nil
}

// ParseEndpoint implements conn.Bind.
func (b *bind) ParseEndpoint(s string) (conn.Endpoint, error) {
	ap, err := netip.ParseAddrPort(s)
	return &conn.StdNetEndpoint{AddrPort: ap}, err
}

// BatchSize implements conn.Bind.
func (b *bind) BatchSize() int { return conn.IdealBatchSize }
