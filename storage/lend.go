package storage

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/storage/internal/fetch"
)

// A content process reads a blob where the server has it: it is lent the file in the spool,
// open for reading only, while that is being written, and a pipe in which a byte says that
// there is more. So no blob goes through a socket for a second time.

// lendRequest asks for a blob.
type lendRequest struct {
	ID     uint32 // of the answer
	Digest digest.Digest
}

// lendAnswer comes with two descriptors, the blob's file and an end of the pipe, where neither
// NotKept nor Err is set.
type lendAnswer struct {
	ID uint32
	// NotKept says that the blob is to be had from the proxy alone.
	NotKept bool           `json:",omitempty"`
	Size    int64          `json:",omitempty"`
	Err     *contentFailed `json:",omitempty"`
}

// What is said through the pipe of a blob that is lent. It ends when all of the blob is in its
// file.
const (
	lentMore    = '+'
	lentLost    = '!' // nobody has the rest
	lentNotKept = '-' // the rest is not kept in the file
)

// maxLoans is how many blobs a content process may be lent at a time.
const maxLoans = 64

// lender lends blobs to a content process.
type lender struct {
	ctx    context.Context
	cancel context.CancelFunc
	conn   *net.UnixConn
	wire   *wire
	proxy  *fetch.Proxy // nil where nothing is pulled

	loans atomic.Int32
	work  sync.WaitGroup
}

func newLender(ctx context.Context, conn *net.UnixConn, w *wire, proxy *fetch.Proxy) *lender {
	l := &lender{conn: conn, wire: w, proxy: proxy}
	l.ctx, l.cancel = context.WithCancel(ctx)
	return l
}

// end ends all loans. Nothing more is said to the content process.
func (l *lender) end() {
	l.cancel()
	_ = l.conn.SetDeadline(time.Unix(1, 0))
	l.work.Wait()
}

// lend answers r, in the background. Its error is that of the wire.
func (l *lender) lend(r lendRequest) error {
	if l.proxy == nil || l.loans.Load() >= maxLoans || r.Digest.Validate() != nil {
		return l.wire.send(contentAnswer{Lent: &lendAnswer{ID: r.ID, NotKept: true}})
	}
	l.loans.Add(1) // by one goroutine alone
	l.work.Go(func() {
		defer l.loans.Add(-1)
		loan, err := l.proxy.Lend(l.ctx, r.Digest)
		if err != nil {
			a := &lendAnswer{ID: r.ID, NotKept: errors.Is(err, fetch.ErrNotKept)}
			if !a.NotKept {
				a.Err = newContentFailed(classify(l.ctx, err))
			}
			_ = l.wire.send(contentAnswer{Lent: a})
			return
		}
		l.follow(r.ID, loan)
	})
	return nil
}

// follow hands a loan over, and says through a pipe how it goes on.
func (l *lender) follow(id uint32, loan *fetch.Loan) {
	pipe, err := l.handOver(id, loan)
	loan.File.Close()
	if err != nil { // as where there are too many descriptors: it must not wait for this one
		_ = l.wire.send(contentAnswer{Lent: &lendAnswer{ID: id, NotKept: true}})
		_ = loan.Follow(l.ctx, func() error { return err })
		return
	}
	defer unix.Close(pipe)
	err = loan.Follow(l.ctx, func() error {
		// One that was not read yet says the same.
		if n, err := unix.IoctlGetInt(pipe, unix.TIOCINQ); err == nil && n > 0 {
			return nil
		}
		_, err := unix.Write(pipe, []byte{lentMore})
		return err
	})
	switch {
	case err == nil:
	case errors.Is(err, fetch.ErrNotKept):
		_, _ = unix.Write(pipe, []byte{lentNotKept})
	default:
		_, _ = unix.Write(pipe, []byte{lentLost})
	}
}

// handOver sends a loan's file and an end of a pipe, and returns the other end.
func (l *lender) handOver(id uint32, loan *fetch.Loan) (int, error) {
	var pipe [2]int
	if err := unix.Pipe2(pipe[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return -1, err
	}
	defer unix.Close(pipe[0])
	answer := contentAnswer{Lent: &lendAnswer{ID: id, Size: loan.Size}}
	if err := l.wire.sendWith(l.conn, answer, int(loan.File.Fd()), pipe[0]); err != nil {
		unix.Close(pipe[1])
		return -1, err
	}
	return pipe[1], nil
}

// sendWith sends a message with descriptors, through conn, which is the wire's.
func (w *wire) sendWith(conn *net.UnixConn, v any, fds ...int) error {
	data, err := framedJSON(v)
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	n, _, err := conn.WriteMsgUnix(data, unix.UnixRights(fds...), nil)
	if err == nil && n < len(data) {
		_, err = conn.Write(data[n:])
	}
	return err
}
