package stream

import (
	"bufio"
	"bytes"
	"compress/zlib"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"runtime"
	"testing"
	"testing/iotest"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// spdyBomb returns a SPDY frame of some hundred KiB, the headers of which are hundreds of
// MiB once they are decompressed.
func spdyBomb(t *testing.T) []byte {
	t.Helper()
	var headers bytes.Buffer
	w := zlib.NewWriter(&headers)
	put := func(n uint32) {
		if err := binary.Write(w, binary.BigEndian, n); err != nil {
			t.Fatal(err)
		}
	}
	const count, size = 256, 1 << 20
	value := bytes.Repeat([]byte("x"), size)
	put(count)
	for i := range count {
		name := fmt.Sprintf("h%03d", i)
		put(uint32(len(name)))
		_, err := io.WriteString(w, name)
		put(size)
		if err == nil {
			_, err = w.Write(value)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	frame := []byte{0x80, 3, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0}
	binary.BigEndian.PutUint32(frame[4:], uint32(10+headers.Len()))
	return append(frame, headers.Bytes()...)
}

// TestSPDYBomb: whoever has a session, as a user of a cluster who may exec, does not make
// the server take memory by a frame whose headers grow when they are decompressed.
func TestSPDYBomb(t *testing.T) {
	bomb := spdyBomb(t)
	s := start(t, &local{}, Options{CreationTimeout: time.Second})
	text, err := s.Exec(&runtimeapi.ExecRequest{ContainerId: "c1", Cmd: []string{"sleep", "100"}, Stdout: true, Stderr: true})
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", u.Host)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v4.channel.k8s.io\r\n\r\n", u.Path, u.Host)
	r := bufio.NewReader(conn)
	if resp, err := http.ReadResponse(r, nil); err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("upgrade: %v, %v", resp, err)
	}
	var before, now runtime.MemStats
	runtime.ReadMemStats(&before)
	_ = conn.SetDeadline(time.Now().Add(time.Minute))
	if _, err := conn.Write(bomb); err != nil {
		t.Logf("the server takes no more: %v", err)
	}
	_ = conn.(*net.TCPConn).CloseWrite()
	if _, err := io.Copy(io.Discard, r); os.IsTimeout(err) {
		t.Error("the server does not end the session")
	}
	runtime.ReadMemStats(&now)
	if grown := now.TotalAlloc - before.TotalAlloc; grown > 32<<20 {
		t.Errorf("a frame of %d KiB has the server take %d MiB", len(bomb)>>10, grown>>20)
	}
}

// TestSPDYFrames: frames are passed on unchanged, however they are read, up to one that is
// too long.
func TestSPDYFrames(t *testing.T) {
	frame := func(control byte, length int) []byte {
		f := make([]byte, 8+length)
		binary.BigEndian.PutUint32(f[4:], uint32(length))
		f[0] = control
		return f
	}
	good := bytes.Join([][]byte{frame(0x80, 100), frame(0, 100000), frame(0x80, maxControlFrame), frame(0, 0), frame(0x80, 0)}, nil)
	for name, r := range map[string]io.Reader{
		"whole": bytes.NewReader(append(bytes.Clone(good), frame(0x80, maxControlFrame+1)...)),
		"bytes": iotest.OneByteReader(bytes.NewReader(append(bytes.Clone(good), frame(0x80, maxControlFrame+1)...))),
	} {
		got, err := io.ReadAll(&spdyReader{r: r})
		// The beginning of a header may have been passed on.
		if !errors.Is(err, errFrame) || len(got) >= len(good)+8 || !bytes.Equal(got[:len(good)], good) {
			t.Errorf("%s: %d bytes, %v, want %d", name, len(got), err, len(good))
		}
	}
}
