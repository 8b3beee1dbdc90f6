package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"time"

	"github.com/opencontainers/go-digest"
)

// source reads one blob from its endpoints. Where the transfer breaks, the next Read
// goes on at the same offset.
type source struct {
	p      *Proxy
	ctx    context.Context
	cancel context.CancelCauseFunc
	digest digest.Digest
	offset int64 // of the next byte for the reader
	size   int64 // -1 until an endpoint has said it

	endpoints []*endpoint // that may still be asked, the first one is asked now
	try       int         // attempts that brought next to nothing, in a row
	asked     time.Duration
	err       error // of the last attempt
	noRanges  bool  // the first endpoint does not go on where it is asked to

	body  io.ReadCloser // nil when there is no connection
	skip  int64         // bytes that are here already and come once more
	begin int64         // offset at which the connection began
}

// newSource returns a source that begins at offset and asks first first.
func (p *Proxy) newSource(ctx context.Context, first *endpoint, d digest.Digest, offset, size int64) *source {
	s := &source{p: p, digest: d, offset: offset, size: size}
	s.ctx, s.cancel = context.WithCancelCause(ctx)
	i := slices.Index(p.endpoints, first)
	s.endpoints = append(slices.Clone(p.endpoints[i:]), p.endpoints[:i]...)
	s.endpoints = slices.DeleteFunc(s.endpoints, func(e *endpoint) bool { return e.distrusted.Load() })
	return s
}

// open connects, so that size is known; it returns what an endpoint answered last when
// none has the blob.
func (s *source) open() error {
	for s.body == nil {
		if err := s.connect(); err != nil {
			return err
		}
	}
	return nil
}

// openFor is open for somebody who waits for it until ctx ends. The transfer does not end with
// ctx once it is open: others may have come to share it.
func (s *source) openFor(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { s.cancel(context.Cause(ctx)) })
	err := s.open()
	if !stop() {
		err = context.Cause(ctx)
	}
	return err
}

// Read reads the blob. An error other than io.EOF is final.
func (s *source) Read(buf []byte) (int, error) {
	for {
		if s.size >= 0 && s.offset >= s.size {
			s.hangUp()
			s.p.moved.Add(1)
			return 0, io.EOF
		}
		if err := s.open(); err != nil {
			return 0, err
		}
		n, err := s.body.Read(buf)
		if s.size >= 0 && s.skip+int64(n) > 0 && s.offset+int64(n) > s.size && s.skip == 0 {
			return 0, s.final(fmt.Errorf("%w: it sends more than the %d bytes that it announced", ErrNotRegistry, s.size))
		}
		gone := min(s.skip, int64(n)) // that the reader has already
		s.skip -= gone
		n = copy(buf, buf[gone:n])
		s.offset += int64(n)
		if errors.Is(err, io.EOF) && s.size < 0 {
			s.hangUp()
			s.p.moved.Add(1)
			s.size = s.offset
		} else if err != nil {
			s.broken(err)
		}
		if n > 0 {
			return n, nil
		}
	}
}

// Close ends the transfer.
func (s *source) Close() error {
	s.hangUp()
	s.cancel(nil)
	return nil
}

func (s *source) hangUp() {
	if s.body != nil {
		s.body.Close()
		s.body = nil
	}
}

// broken ends a connection that failed. What it brought decides whether the endpoint
// gets another chance.
func (s *source) broken(err error) {
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF // the answer's length was known
	}
	s.hangUp()
	s.err = err
	if s.offset-s.begin >= meaningful {
		s.try = 0
	} else {
		s.try++
	}
	if errors.Is(err, errSilent) {
		s.try = s.endpoints[0].tries()
	}
}

// connect tries once to get the rest of the blob. It returns an error when there is
// nobody left to ask.
func (s *source) connect() error {
	if s.ctx.Err() != nil {
		return context.Cause(s.ctx)
	}
	if s.try >= s.endpoints[0].tries() {
		return s.giveUp()
	}
	e, client := s.endpoints[0], s.endpoints[0].client
	if s.err != nil {
		client = e.fresh
		if err := s.p.wait(s.ctx, s.try, s.asked); err != nil { // soon, after an attempt that brought something
			return err
		}
		s.asked = 0
	}
	header := http.Header{"Accept-Encoding": {"identity"}}
	if s.offset > 0 && !s.noRanges {
		header.Set("Range", fmt.Sprintf("bytes=%d-", s.offset))
	}
	resp, err := e.do(s.ctx, client, http.MethodGet, "/v2/"+e.Repo+"/blobs/"+s.digest.String(), header)
	if err != nil {
		s.err = err
		if s.try++; !worthwhile(err) {
			s.try = e.tries()
		}
		return nil
	}
	if err = s.accept(resp); err == nil {
		s.body, s.begin = resp.Body, s.offset
		e.delivered.Store(true)
		return nil
	}
	s.err = err
	if header.Get("Range") != "" && (errors.Is(err, errRange) || refusesRange(resp.StatusCode)) {
		resp.Body.Close()
		s.noRanges = true // and that was no attempt
		return nil
	}
	if s.try++; retryable(resp.StatusCode) {
		s.asked = retryAfter(resp.Header)
		if s.asked > 0 && len(s.endpoints) > 1 {
			s.try = e.tries() // another one need not wait
		}
	} else if resp.StatusCode/100 != 2 {
		s.try = e.tries()
	}
	resp.Body.Close()
	return nil
}

// errRange means that an answer is not the range that was asked for.
var errRange = errors.New("not the range of the blob that was asked for")

// accept checks an answer, and notes the blob's size and how much of it is here.
func (s *source) accept(resp *http.Response) error {
	total := int64(-1)
	switch resp.StatusCode {
	case http.StatusOK:
		total, s.skip = resp.ContentLength, s.offset
	case http.StatusPartialContent:
		first, last, length, ok := parseContentRange(resp.Header.Get("Content-Range"))
		if !ok || first != s.offset || length >= 0 && last != length-1 {
			return fmt.Errorf("%w: %w: it sent %.100q instead of what follows byte %d", ErrNotRegistry, errRange, resp.Header.Get("Content-Range"), s.offset)
		}
		total, s.skip = length, 0
	default:
		return statusError(resp)
	}
	if s.size >= 0 && total >= 0 && total != s.size {
		return fmt.Errorf("%w: the blob had %d bytes, and now it has %d", ErrNotRegistry, s.size, total)
	}
	if s.size < 0 {
		s.size = total
	}
	return nil
}

// giveUp passes to the next endpoint, or returns the error of the last one.
func (s *source) giveUp() error {
	if len(s.endpoints) == 1 {
		return s.final(s.err)
	}
	s.p.cfg.Log.Info("the next registry is asked for a blob", "registry", s.endpoints[0].Host,
		"next", s.endpoints[1].Host, "blob", s.digest.String(), "error", s.err)
	s.endpoints, s.try, s.asked, s.noRanges = s.endpoints[1:], 0, 0, false
	return nil
}

func (s *source) final(err error) error {
	s.hangUp()
	return &Error{What: "blob " + s.digest.String(), Host: s.endpoints[0].Host, Tries: s.try, Err: unavailable(err)}
}
