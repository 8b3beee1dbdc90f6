package fetch

import (
	"context"
	"errors"
	"os"
	"sync"

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
	l, err := lend(ctx, p, d)
	if err != nil {
		end()
		if ctx.Err() == nil {
			lost(p, err)
		}
		return nil, err
	}
	l.end = end
	return l, nil
}

func lend(ctx context.Context, p *Proxy, d digest.Digest) (*Loan, error) {
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
		p.aside.put(src)
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
	err := follow(ctx, l.p, l.e, l.b, l.src, func(int64) error { return grown() })
	switch {
	case errors.Is(err, errSpool):
		return ErrNotKept
	case err == nil:
		l.p.setErr(nil)
	case ctx.Err() == nil:
		lost(l.p, err)
	}
	return err
}

// lost notes that a blob is not to be had, and with it the image, if err says so.
func lost(p *Proxy, err error) {
	var e *Error
	if !errors.As(err, &e) {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lost, p.err = e, e
}

// aside has blobs that were asked for and are not lent, for the requests that come for them:
// the registry is not asked twice.
type aside struct {
	mu      sync.Mutex
	closed  bool
	sources map[digest.Digest]*source
}

// put keeps src, or closes it where there is another one of its blob, or there are many.
func (a *aside) put(src *source) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed || a.sources[src.digest] != nil || len(a.sources) >= maxRequests {
		src.Close()
		return
	}
	if a.sources == nil {
		a.sources = map[digest.Digest]*source{}
	}
	a.sources[src.digest] = src
}

// take returns what was kept of a blob, or nil.
func (a *aside) take(d digest.Digest) *source {
	a.mu.Lock()
	defer a.mu.Unlock()
	src := a.sources[d]
	delete(a.sources, d)
	return src
}

// clear closes what is kept; with final, nothing is kept any more.
func (a *aside) clear(final bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.closed = a.closed || final
	for _, src := range a.sources {
		src.Close()
	}
	a.sources = nil
}
