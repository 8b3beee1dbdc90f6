package stream

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http"
)

// maxControlFrame bounds SPDY's frames without data, in bytes. The headers of a stream are
// compressed, to a thousandth where they are all alike, and the library takes up to 2 GiB
// for those of one frame. Those of exec, attach and port-forward have some hundred bytes.
const maxControlFrame = 4 << 10

// errFrame says that a client has sent a frame that no client needs to.
var errFrame = errors.New("a control frame of SPDY is too long")

// spdyReader passes a client's SPDY frames on, up to a control frame that is too long.
type spdyReader struct {
	r      io.Reader
	header [8]byte // of a frame: what of it has been read
	have   int
	left   int // bytes of the frame after its header
	err    error
}

// Read implements io.Reader.
func (s *spdyReader) Read(p []byte) (int, error) {
	if s.err != nil {
		return 0, s.err
	}
	n, err := s.r.Read(p)
	for at := 0; at < n; {
		if s.left > 0 {
			skip := min(s.left, n-at)
			s.left -= skip
			at += skip
			continue
		}
		took := copy(s.header[s.have:], p[at:n])
		s.have += took
		at += took
		if s.have < len(s.header) {
			break
		}
		s.have = 0
		s.left = int(binary.BigEndian.Uint32(s.header[4:]) & 0xffffff)
		if s.header[0]&0x80 != 0 && s.left > maxControlFrame {
			s.err = errFrame
			return at - took, s.err
		}
	}
	return n, err
}

// spdyWriter is the ResponseWriter of a request that may become a SPDY session, whose
// frames are bounded.
type spdyWriter struct{ http.ResponseWriter }

// Hijack implements http.Hijacker. The library reads by the returned reader only.
func (w spdyWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	return conn, bufio.NewReadWriter(bufio.NewReader(&spdyReader{r: rw.Reader}), rw.Writer), nil
}
