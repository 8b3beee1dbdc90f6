package tunnel

import (
	"io"
	"net"
	"testing"
)

// BenchmarkTunnel is one TCP stream between pods of two nodes, beside one by the loopback
// that carries the tunnel's packets.
func BenchmarkTunnel(b *testing.B) {
	b.Run("tunnel", func(b *testing.B) {
		one, two := two(b)
		one.to("10.244.0.1", two.peer("10.244.1.0/24", "192.0.2.2"))
		two.to("10.244.1.1", one.peer("10.244.0.0/24", "192.0.2.1"))
		var l net.Listener
		two.do(func() (err error) {
			l, err = net.Listen("tcp", "10.244.1.5:81")
			return err
		})
		c, err := drained(b, l, func() (net.Conn, error) { return one.connect("10.244.0.5", "10.244.1.5:81", answerTimeout) })
		must(b, err)
		stream(b, c)
	})
	b.Run("loopback", func(b *testing.B) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		must(b, err)
		c, err := drained(b, l, func() (net.Conn, error) { return net.Dial("tcp", l.Addr().String()) })
		must(b, err)
		stream(b, c)
	})
}

// drained connects to a listener that reads all that comes.
func drained(b *testing.B, l net.Listener, dial func() (net.Conn, error)) (net.Conn, error) {
	b.Cleanup(func() { l.Close() })
	go func() {
		if c, err := l.Accept(); err == nil {
			_, _ = io.Copy(io.Discard, c)
			c.Close()
		}
	}()
	return dial()
}

func stream(b *testing.B, c net.Conn) {
	defer c.Close()
	data := make([]byte, 1<<20)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		_, err := c.Write(data)
		must(b, err)
	}
}
