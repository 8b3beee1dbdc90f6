package storage

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"testing/iotest"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// TestLentBlob: a blob is read while its file grows, to its end or to where it is lost.
func TestLentBlob(t *testing.T) {
	content := make([]byte, 300<<10)
	rand.NewChaCha8([32]byte{}).Read(content)
	for _, c := range []struct {
		name string
		end  string // what is said before the pipe ends
		part int    // of content that comes
		want error
	}{
		{"whole", "", len(content), nil},
		{"lost", string(rune(lentLost)), 100 << 10, errors.New("the rest of the blob could not be fetched")},
		{"not kept", string(rune(lentNotKept)), 100 << 10, errNotLent},
		{"gone", "", 100 << 10, io.ErrUnexpectedEOF},
	} {
		t.Run(c.name, func(t *testing.T) {
			file, more, b := lend(t, int64(len(content)))
			type outcome struct {
				read []byte
				err  error
			}
			ended := make(chan outcome, 1)
			go func() {
				read, err := io.ReadAll(b)
				ended <- outcome{read, err}
			}()
			for at := 0; at < c.part; at += 50 << 10 {
				if _, err := file.Write(content[at : at+50<<10]); err != nil {
					t.Fatal(err)
				}
				fmt.Fprint(more, string(rune(lentMore)))
			}
			fmt.Fprint(more, c.end)
			more.Close()
			got := <-ended
			// What is said of the end may be heard before the last bytes are read.
			if !bytes.HasPrefix(content[:c.part], got.read) || c.end == "" && len(got.read) != c.part {
				t.Errorf("%d bytes were read, want %d", len(got.read), c.part)
			}
			if fmt.Sprint(got.err) != fmt.Sprint(c.want) {
				t.Errorf("the error is %v, want %v", got.err, c.want)
			}
			if err := b.Close(); err != nil {
				t.Error(err)
			}
		})
	}
}

// lend lends a new file to the other end of a socket, and returns it, the pipe, and what is
// made of it there.
func lend(t *testing.T, size int64) (file, more *os.File, b io.ReadCloser) {
	t.Helper()
	conn, remote, err := socketPair()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	s := listening(t, remote)
	path := filepath.Join(t.TempDir(), "blob")
	if file, err = os.Create(path); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	lent, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer lent.Close()
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pipe[0])
	server, fds := &wire{rw: conn}, []int{int(lent.Fd()), pipe[0]}
	go func() {
		var m contentMessage
		if err := server.receive(&m, maxContentMessage); err != nil {
			t.Error(err)
			return
		}
		_ = server.send(contentAnswer{Moved: true}) // messages without descriptors come between
		if err := server.sendWith(conn, contentAnswer{Lent: &lendAnswer{ID: m.Lend.ID, Size: size}}, fds...); err != nil {
			t.Error(err)
		}
	}()
	if b, err = s.borrow(t.Context(), digest.FromString("a blob")); err != nil {
		t.Fatal(err)
	}
	return file, os.NewFile(uintptr(pipe[1]), "more"), b
}

// listening is a content process's end of a socket.
func listening(t *testing.T, remote *os.File) *serverConn {
	t.Helper()
	fd, err := unix.Dup(int(remote.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	remote.Close()
	in, err := newInbox(uintptr(fd))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { in.Close() })
	s := &serverConn{wire: &wire{rw: in}, inbox: in, answers: make(chan contentAnswer)}
	go s.listen(func() {}, func(error) {})
	return s
}

// TestBorrowEnds: who waits for a blob waits no longer than there is a server.
func TestBorrowEnds(t *testing.T) {
	conn, remote, err := socketPair()
	if err != nil {
		t.Fatal(err)
	}
	s := listening(t, remote)
	ended := make(chan error, 1)
	go func() {
		_, err := s.borrow(t.Context(), digest.FromString("a blob"))
		ended <- err
	}()
	var m contentMessage
	if err := (&wire{rw: conn}).receive(&m, maxContentMessage); err != nil || m.Lend == nil {
		t.Fatalf("asked for %+v: %v", m, err)
	}
	conn.Close()
	if err := <-ended; !errors.Is(err, errServerGone) {
		t.Errorf("the error is %v", err)
	}
	if _, err := s.borrow(t.Context(), digest.FromString("another one")); err == nil {
		t.Error("a blob was lent by nobody")
	}
}

// TestReadAhead: a stream comes as it is, with its digest and its error.
func TestReadAhead(t *testing.T) {
	content := make([]byte, 5*aheadCount*aheadSize/2+77)
	rand.NewChaCha8([32]byte{1}).Read(content)
	broken := errors.New("broken")
	for name, c := range map[string]struct {
		src  io.Reader
		want error
	}{
		"whole":            {bytes.NewReader(content), nil},
		"with its end":     {iotest.DataErrReader(bytes.NewReader(content)), nil},
		"in small pieces":  {iotest.HalfReader(bytes.NewReader(content)), nil},
		"broken":           {io.MultiReader(bytes.NewReader(content), iotest.ErrReader(broken)), broken},
		"with empty reads": {&emptyReads{r: bytes.NewReader(content)}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			r := newReadAhead(c.src, sha256.New())
			got, err := io.ReadAll(r)
			if !bytes.Equal(got, content) || !errors.Is(err, c.want) {
				t.Errorf("%d bytes of %d, error %v", len(got), len(content), err)
			}
			if want := sha256.Sum256(content); !bytes.Equal(r.digest(), want[:]) {
				t.Error("the digest is another one")
			}
			if err := r.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("given up", func(t *testing.T) {
		r := newReadAhead(bytes.NewReader(content), sha256.New())
		if _, err := io.ReadFull(r, make([]byte, 5)); err != nil {
			t.Fatal(err)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
}

// emptyReads returns nothing, and no error, between any two pieces.
type emptyReads struct {
	r     io.Reader
	empty bool
}

// Read implements io.Reader.
func (e *emptyReads) Read(p []byte) (int, error) {
	if e.empty = !e.empty; e.empty {
		return 0, nil
	}
	return e.r.Read(p)
}
