package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"

	"github.com/opencontainers/go-digest"
)

// serveBlob answers with a whole blob.
func (p *Proxy) serveBlob(w http.ResponseWriter, r *http.Request, e *endpoint, d digest.Digest) {
	if err := p.failed(); err != nil {
		p.fail(w, err)
		return
	}
	b, src, err := p.open(r.Context(), e, d)
	if err != nil {
		failBlob(r.Context(), p, w, err, true)
		return
	}
	size := int64(-1)
	if b != nil {
		size = b.length()
	} else {
		size = src.size
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	if size >= 0 {
		w.Header().Set("Content-Length", strconv.FormatInt(size, 10))
	}
	if b != nil {
		err = serveSpooled(w, r, p, e, b, src)
	} else {
		_, err = io.CopyBuffer(onlyWriter{w}, src, make([]byte, 256<<10))
		src.Close()
	}
	if err != nil {
		failBlob(r.Context(), p, w, err, false)
		return
	}
	p.setErr(nil)
}

// onlyWriter hides a ResponseWriter's ReadFrom, which has a buffer of its own.
type onlyWriter struct{ io.Writer }

// open finds a blob: in the spool, or at an endpoint. It returns a blob of the spool, or
// a source, or both for a blob that is new in the spool.
func (p *Proxy) open(ctx context.Context, e *endpoint, d digest.Digest) (*blob, *source, error) {
	if err := d.Validate(); err != nil {
		return nil, nil, &Error{What: "blob " + d.String(), Host: e.Host, Err: fmt.Errorf("%w: %w", ErrNotFound, err)}
	}
	if b := p.using(d); b != nil {
		return b, nil, nil
	}
	if src := p.aside.take(d); src != nil {
		return nil, src, nil
	}
	for {
		b, first := p.cfg.Spool.claim(d)
		if b != nil && !first {
			there, err := p.share(ctx, b)
			if err != nil {
				return nil, nil, err
			} else if there {
				return p.use(b), nil, nil
			} else if b.isGone() {
				continue // and nobody else's turn
			}
			b = nil
		}
		src := p.newSource(p.ctx, e, d, 0, -1)
		err := src.openFor(ctx)
		if err == nil && b != nil && p.cfg.Spool.admit(b, src.size) {
			return p.use(b), src, nil
		}
		if b != nil {
			p.cfg.Spool.drop(b)
		}
		if err != nil {
			src.Close()
			return nil, nil, err
		}
		return nil, src, nil
	}
}

// share reports whether this pull can use a blob that another one has brought, or
// brings, into the spool. If not, it is released.
func (p *Proxy) share(ctx context.Context, b *blob) (bool, error) {
	there := p.mayHave(ctx, b.digest)
	var err error
	if there {
		there, err = b.wait(ctx)
	}
	if there && b.offset() == b.length() && !b.verify(ctx) {
		p.cfg.Spool.discard(b)
		there = false
	}
	if !there {
		p.cfg.Spool.release(b, true)
	}
	return there, err
}

// using returns the blob of the spool that this pull uses already.
func (p *Proxy) using(d digest.Digest) *blob {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.blobs[d.String()]
}

// use notes that this pull uses a blob, until Close.
func (p *Proxy) use(b *blob) *blob {
	p.mu.Lock()
	defer p.mu.Unlock()
	if old := p.blobs[b.digest.String()]; old != nil || p.blobs == nil {
		p.cfg.Spool.release(b, true) // counted already
		return b
	}
	p.blobs[b.digest.String()] = b
	return b
}

// mayHave asks whether an endpoint would give the blob to this pull: what another pull
// has fetched with other credentials is not handed out without.
func (p *Proxy) mayHave(ctx context.Context, d digest.Digest) bool {
	for _, e := range p.endpoints {
		resp, err := e.again(ctx, "blob "+d.String(), func(ctx context.Context) (*http.Response, error) {
			return e.do(ctx, e.client, http.MethodHead, "/v2/"+e.Repo+"/blobs/"+d.String(), nil)
		})
		if err != nil {
			continue
		}
		resp.Body.Close()
		if resp.StatusCode == http.StatusOK {
			return true
		}
	}
	return false
}

// serveSpooled sends a blob while it is being downloaded into the spool.
func serveSpooled(w http.ResponseWriter, r *http.Request, p *Proxy, e *endpoint, b *blob, src *source) error {
	f, err := os.Open(b.path)
	if err != nil {
		abandon(b, src)
		return err
	}
	defer f.Close()
	sent := int64(0)
	err = follow(r.Context(), p, e, b, src, func(written int64) error {
		n, err := io.CopyN(w, f, written-sent)
		sent += n
		if flusher, ok := w.(http.Flusher); ok && err == nil {
			flusher.Flush()
		}
		return err
	})
	if errors.Is(err, errSpool) { // goes on without
		return p.stream(w, e, b, sent)
	}
	return err
}

// abandon ends a download that has not begun.
func abandon(b *blob, src *source) {
	if src != nil {
		src.Close()
		b.advance(0, true)
	}
}

// follow calls pass with how much there is of a blob, whenever that is more, while it is
// being downloaded into the spool by this pull or by another one. src, where not nil, is the
// open beginning of it.
func follow(ctx context.Context, p *Proxy, e *endpoint, b *blob, src *source, pass func(written int64) error) error {
	result := make(chan error, 1)
	size := b.length()
	if src != nil {
		p.download(b, src, result)
	}
	for passed := int64(0); passed < size; {
		written, changed, mine := b.status()
		if mine { // who began has given up
			select {
			case err := <-result: // this one: there is nobody left to ask
				b.advance(0, true)
				return err
			default:
			}
			p.download(b, p.newSource(p.ctx, e, b.digest, written, size), result)
		}
		if written > passed {
			if err := pass(written); err != nil {
				return err
			}
			passed = written
			continue
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		select {
		case err := <-result:
			if err != nil {
				return err
			}
		default:
		}
	}
	return nil
}

// download fills b from src in the background.
func (p *Proxy) download(b *blob, src *source, result chan<- error) {
	p.work.Go(func() {
		err := b.fill(src)
		src.Close()
		result <- err // before others see that the download has ended
		b.advance(0, true)
	})
}

// stream sends a blob from offset on without the spool.
func (p *Proxy) stream(w io.Writer, e *endpoint, b *blob, offset int64) error {
	src := p.newSource(p.ctx, e, b.digest, offset, b.length())
	defer src.Close()
	_, err := io.CopyBuffer(onlyWriter{w}, src, make([]byte, 256<<10))
	return err
}

// failBlob ends an answer that failed. Nothing else can be said once a part of the blob
// has been sent: the connection breaks, and the library's next request gets the reason.
func failBlob(ctx context.Context, p *Proxy, w http.ResponseWriter, err error, clean bool) {
	var e *Error
	if ctx.Err() != nil || !errors.As(err, &e) {
		panic(http.ErrAbortHandler) // the library has gone
	}
	lost(p, e)
	if clean {
		p.fail(w, e)
		return
	}
	panic(http.ErrAbortHandler)
}

// failed returns why the image can't be had: the library asks for what it still lacks
// also after one blob was not to be had.
func (p *Proxy) failed() *Error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.lost
}
