package fetch

import (
	"context"
	"errors"
	"os"

	"github.com/opencontainers/go-digest"
)

// ErrNotKept means that a blob can't be lent, since it is not kept in the spool: the library
// must ask for it.
var ErrNotKept = errors.New("the blob is not kept in a file")

// Loan is a blob of the spool, lent to a process that reads its file while it is being
// downloaded.
type Loan struct {
	// File is open for reading only. The borrower of the loan closes it.
	File *os.File
	Size int64

	p   *Proxy
	e   *endpoint
	b   *blob
	src *source
	end func()
}

// Lend opens a blob of the pull, as a request for it does. The caller must call Follow, once.
// ErrNotKept; any other error is that nobody has the blob, and ends the pull.
func (p *Proxy) Lend(ctx context.Context, d digest.Digest) (*Loan, error) {
	end := begin(ctx, p)
	if end == nil {
		return nil, context.Canceled
	}
	l, err := p.lend(ctx, d)
	if err != nil {
		end()
		if ctx.Err() == nil {
			p.noteLost(err)
		}
		return nil, err
	}
	l.end = end
	return l, nil
}

func (p *Proxy) lend(ctx context.Context, d digest.Digest) (*Loan, error) {
	if err := p.failed(); err != nil {
		return nil, err
	}
	e := p.preferred.Load()
	if e == nil || e.distrusted.Load() {
		return nil, ErrNotKept // the library finds another one
	}
	b, src, err := p.open(ctx, e, d)
	if err != nil {
		return nil, err
	}
	if b == nil {
		src.Close()
		return nil, ErrNotKept
	}
	f, err := os.Open(b.path)
	if err != nil {
		abandon(b, src)
		return nil, ErrNotKept
	}
	return &Loan{File: f, Size: b.length(), p: p, e: e, b: b, src: src}, nil
}

// Follow sees to it that the blob is downloaded, and calls grown whenever there is more of it
// in the file. It returns when all of it is there, with the error of grown, or ErrNotKept when
// the spool can't take more of it. Any other error ends the pull.
func (l *Loan) Follow(ctx context.Context, grown func() error) error {
	defer l.end()
	err := l.p.follow(ctx, l.e, l.b, l.src, func(int64) error { return grown() })
	switch {
	case errors.Is(err, errSpool):
		return ErrNotKept
	case err == nil:
		l.p.setErr(nil)
	case ctx.Err() == nil:
		l.p.noteLost(err)
	}
	return err
}

// noteLost is lose for an error that says that nobody has a blob.
func (p *Proxy) noteLost(err error) {
	var e *Error
	if errors.As(err, &e) {
		p.lose(e)
	}
}
