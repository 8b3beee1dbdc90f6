package oci

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/pkg/stdio"
)

// FuzzAttach: whatever packets a container's monitor sends, each reaches the right
// stream, and the end of the connection ends the session without an error.
func FuzzAttach(f *testing.F) {
	f.Add([]byte("\x06\x02hello\x05\x03oops"))
	f.Add([]byte("\x00\x01\x02\x01\x03\x02\x09x"))
	f.Fuzz(func(t *testing.T, data []byte) {
		ours, theirs := packetPair(t)
		defer ours.Close()
		var wantOut, wantErr []byte
		go func() {
			defer theirs.Close()
			for rest := data; len(rest) > 0; { // a length, then that many bytes
				n := min(int(rest[0]), len(rest)-1)
				if n > 0 { // an empty packet is the end of the connection
					if _, err := theirs.Write(rest[1 : 1+n]); err != nil {
						return
					}
				}
				rest = rest[1+n:]
			}
		}()
		for rest := data; len(rest) > 0; {
			n := min(int(rest[0]), len(rest)-1)
			if n > 1 {
				if rest[1] == stderrPacket {
					wantErr = append(wantErr, rest[2:1+n]...)
				} else {
					wantOut = append(wantOut, rest[2:1+n]...)
				}
			}
			rest = rest[1+n:]
		}
		var out, errs bytes.Buffer
		_ = ours.SetReadDeadline(time.Now().Add(time.Minute))
		if err := receiveOutput(ours, stdio.Streams{Stdout: &out, Stderr: &errs}); err != nil {
			t.Error(err)
		}
		if !bytes.Equal(out.Bytes(), wantOut) || !bytes.Equal(errs.Bytes(), wantErr) {
			t.Errorf("stdout %q, stderr %q; want %q and %q", out.Bytes(), errs.Bytes(), wantOut, wantErr)
		}
	})
}

// packetPair returns two ends of a SOCK_SEQPACKET connection.
func packetPair(t *testing.T) (a, b *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	conns := [2]*net.UnixConn{}
	for i, fd := range fds {
		file := os.NewFile(uintptr(fd), "pair")
		conn, err := net.FileConn(file)
		file.Close()
		if err != nil {
			t.Fatal(err)
		}
		conns[i] = conn.(*net.UnixConn)
	}
	return conns[0], conns[1]
}

// FuzzSync: conmon's answer to a create, which has the runtime's words in it, is a
// PID or an error with these words.
func FuzzSync(f *testing.F) {
	f.Add([]byte("{\"data\": 42}\n"))
	f.Add([]byte("{\"data\": -1, \"message\": \"{\\\"level\\\":\\\"error\\\",\\\"msg\\\":\\\"no such file\\\"}\\n\"}\n"))
	f.Add([]byte("not JSON"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 60<<10 {
			return // more than a pipe holds
		}
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
		w.Close()
		pid, err := readSync(context.Background(), &runtime{name: "crun"}, r)
		var failed *RuntimeError
		if (err == nil) == (pid <= 0) || err != nil && !errors.As(err, &failed) {
			t.Errorf("PID %d, %v", pid, err)
		}
	})
}
