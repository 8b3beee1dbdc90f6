package storage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// inbox reads from a socket, and keeps the descriptors that come with what it reads.
type inbox struct {
	*net.UnixConn
	files []*os.File
}

func newInbox(fd uintptr) (*inbox, error) {
	f := os.NewFile(fd, "server")
	defer f.Close()
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	unixConn, ok := conn.(*net.UnixConn)
	if !ok {
		return nil, errors.Join(fmt.Errorf("descriptor %d is no socket of unix", fd), conn.Close())
	}
	return &inbox{UnixConn: unixConn}, nil
}

// Read implements io.Reader.
func (i *inbox) Read(p []byte) (int, error) {
	var oob [64]byte
	n, size, _, _, err := i.ReadMsgUnix(p, oob[:])
	if size > 0 {
		messages, _ := unix.ParseSocketControlMessage(oob[:size])
		for _, m := range messages {
			fds, _ := unix.ParseUnixRights(&m)
			for _, fd := range fds {
				i.files = append(i.files, os.NewFile(uintptr(fd), "lent"))
			}
		}
	}
	return n, err
}

// take returns the descriptors that have come with the message that was read last.
func (i *inbox) take() []*os.File {
	files := i.files
	i.files = nil
	return files
}

// errNotLent means that a blob is to be had from the proxy alone.
var errNotLent = errors.New("the blob is not lent")

// loans are the questions for blobs that wait for an answer.
type loans struct {
	mu      sync.Mutex
	last    uint32
	ended   bool
	waiting map[uint32]chan loan
}

type loan struct {
	lendAnswer
	files []*os.File
}

// ask returns the number of a question and where its answer comes; closed where none does.
func (l *loans) ask() (uint32, <-chan loan) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := make(chan loan, 1)
	if l.ended {
		close(c)
		return 0, c
	}
	if l.waiting == nil {
		l.waiting = map[uint32]chan loan{}
	}
	l.last++
	l.waiting[l.last] = c
	return l.last, c
}

// answered passes an answer on to who has asked.
func (l *loans) answered(a lendAnswer, files []*os.File) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if c := l.waiting[a.ID]; c != nil {
		delete(l.waiting, a.ID)
		c <- loan{a, files}
		return
	}
	closeAll(files)
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// end ends all questions: there is nobody to answer them.
func (l *loans) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = true
	for _, c := range l.waiting {
		close(c)
	}
	l.waiting = nil
}

// borrow asks the server for a blob. errNotLent.
func (s *serverConn) borrow(ctx context.Context, d digest.Digest) (io.ReadCloser, error) {
	id, answer := s.loans.ask()
	if err := s.send(contentMessage{Lend: &lendRequest{ID: id, Digest: d}}); err != nil {
		return nil, err
	}
	select {
	case l, ok := <-answer:
		switch {
		case !ok:
			return nil, errServerGone
		case l.NotKept:
			return nil, errNotLent
		case l.Err != nil:
			return nil, l.Err.unpack()
		case len(l.files) != 2:
			closeAll(l.files)
			return nil, fmt.Errorf("blob %s was lent with %d descriptors", d, len(l.files))
		}
		b := &lentBlob{file: l.files[0], more: l.files[1], size: l.Size}
		b.stop = context.AfterFunc(ctx, func() { b.more.Close() })
		return b, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// lentBlob reads a blob from a file that grows.
type lentBlob struct {
	file, more *os.File
	at, size   int64
	stop       func() bool
}

// Read implements io.Reader.
func (b *lentBlob) Read(p []byte) (int, error) {
	ended := false
	for {
		if b.at >= b.size {
			return 0, io.EOF
		}
		n, err := b.file.Read(p[:min(int64(len(p)), b.size-b.at)])
		if b.at += int64(n); n > 0 || err != nil && !errors.Is(err, io.EOF) || len(p) == 0 {
			return n, err
		}
		if ended {
			return 0, io.ErrUnexpectedEOF
		}
		if ended, err = b.wait(); err != nil {
			return 0, err
		}
	}
}

// wait waits until there is more, or until there will be no more.
func (b *lentBlob) wait() (ended bool, err error) {
	var said [16]byte
	n, err := b.more.Read(said[:])
	switch {
	case errors.Is(err, io.EOF):
		return true, nil
	case err != nil:
		return false, err
	}
	switch said[n-1] {
	case lentLost:
		return false, errors.New("the rest of the blob could not be fetched")
	case lentNotKept:
		return false, errNotLent
	}
	return false, nil
}

// Close implements io.Closer. It ends a Read that waits.
func (b *lentBlob) Close() error {
	b.stop()
	return errors.Join(b.more.Close(), b.file.Close())
}
