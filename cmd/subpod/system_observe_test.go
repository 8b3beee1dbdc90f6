package main

import (
	"net"
	"path/filepath"
	"strings"
	"testing"
)

// TestPrintMetrics: what whoever listens on the address of the metrics says is shown, but
// controls no terminal; what Prometheus can read stays so; and what is no answer is an error.
func TestPrintMetrics(t *testing.T) {
	for _, c := range []struct{ answer, want, err string }{
		{answer: "HTTP/1.0 200 OK\r\nX: y\r\n\r\na 1\nb{c=\"d\"} 2\n", want: "a 1\nb{c=\"d\"} 2\n"},
		{answer: "HTTP/1.0 200 OK\r\n\r\na\x1b]0;x\a\xff\u202e 1\n", want: "a\ufffd]0;x\ufffd\ufffd\ufffd 1\n"},
		{answer: "HTTP/1.0 200 OK\r\n\r\nb{c=\"\ufffd\\\"\\n\"} 2\n", want: "b{c=\"\ufffd\\\"\\n\"} 2\n"},
		{answer: "HTTP/1.0 200 OK\r\n\r\nno end", want: "no end\n"},
		{answer: "HTTP/1.0 200 OK\r\n\r\n" + strings.Repeat("x", 2<<20), err: "too long"},
		{answer: strings.Repeat("x", 2<<20), err: "too long"},
		{answer: "HTTP/1.0 503 \x1b[2J\r\n\r\n", err: `503 \x1b[2J`},
		{answer: "HTTP/1.0 200 OK\r\n", err: "EOF"},
		{answer: "", err: "EOF"},
	} {
		l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			buf := make([]byte, 1000)
			_, _ = conn.Read(buf)
			_, _ = conn.Write([]byte(c.answer))
			conn.Close()
		}()
		var out strings.Builder
		err = printMetrics(t.Context(), &out, "unix", l.Addr().String())
		l.Close()
		if c.err == "" && (err != nil || out.String() != c.want) || c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
			t.Errorf("%.60q: %q, %v", c.answer, out.String(), err)
		}
	}
}
