package fetch

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"testing"

	"github.com/subpod/subpod/tests/registry"
)

// TestLocalWithoutTLS: a registry on this machine that speaks plain HTTP is found to do so,
// whatever it makes of the first bytes of TLS.
func TestLocalWithoutTLS(t *testing.T) {
	for name, answer := range map[string]func(net.Conn){
		"status": func(c net.Conn) { io.WriteString(c, "HTTP/1.1 400 Bad Request\r\n\r\n") },
		"page":   func(c net.Conn) { io.WriteString(c, "<html>bad request</html>") },
		"reset":  func(c net.Conn) { _ = c.(*net.TCPConn).SetLinger(0) },
		"end":    func(net.Conn) {},
	} {
		t.Run(name, func(t *testing.T) {
			f := fake(t, registry.FakeOptions{})
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { l.Close() })
			go func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					go pass(c, f.Addr, answer)
				}
			}()
			host := l.Addr().String()
			for local, want := range map[bool]bool{true: true, false: false} {
				_, c := start(t, Config{Endpoints: []Endpoint{{Host: host, Repo: "app", Local: local}}})
				resp, _, err := get(t, c, host, "manifests/1")
				if got := err == nil && resp.StatusCode == http.StatusOK; got != want {
					t.Errorf("local %v: the manifest came: %v, %v", local, got, err)
				}
			}
		})
	}
}

// pass passes a connection on, unless it begins as TLS does.
func pass(c net.Conn, to string, answer func(net.Conn)) {
	defer c.Close()
	in := bufio.NewReader(c)
	if first, err := in.Peek(1); err != nil || first[0] == 0x16 {
		answer(c)
		return
	}
	far, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	defer far.Close()
	go io.Copy(far, in)
	io.Copy(c, far)
}
