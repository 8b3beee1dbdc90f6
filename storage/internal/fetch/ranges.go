package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/textproto"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
)

// span is a part of a blob; last is -1 for its end.
type span struct{ first, last int64 }

// serveRanges answers a request for parts of a blob. Parts that are lacking when the
// transfer breaks are asked for again.
func (p *Proxy) serveRanges(w http.ResponseWriter, r *http.Request, e *endpoint, d digest.Digest) {
	if err := p.failed(); err != nil {
		p.fail(w, err)
		return
	}
	wanted, ok := parseRanges(r.Header.Get("Range"))
	if !ok || d.Validate() != nil {
		http.Error(w, "bad range", http.StatusBadRequest)
		return
	}
	a := &rangesAnswer{w: w, wanted: wanted}
	what := "blob " + d.String()
	var last error
	for i := range p.endpoints {
		from := p.endpoints[i]
		if i == 0 {
			from = e
		} else if from == e {
			from = p.endpoints[0]
		}
		for try := 1; try <= from.tries(); try++ {
			before := a.sent
			again, err := a.fetch(r.Context(), from, d)
			if err == nil {
				a.finish()
				p.moved.Add(1)
				return
			}
			if r.Context().Err() != nil {
				panic(http.ErrAbortHandler)
			}
			last = &Error{What: what, Host: from.Host, Tries: try, Err: unavailable(err)}
			if errors.Is(err, errWhole) {
				p.serveBlob(w, r, from, d)
				return
			}
			if !again {
				break
			}
			if a.sent-before >= meaningful {
				try = 0
				p.moved.Add(1)
			}
			if p.wait(r.Context(), max(try, 1), 0) != nil {
				panic(http.ErrAbortHandler)
			}
		}
	}
	var refused *rangeRefused
	if errors.As(last, &refused) && a.multi == nil && !a.begun {
		http.Error(w, refused.status, refused.code) // the library asks for less
		return
	}
	failBlob(r.Context(), p, w, last, !a.begun)
}

// parseRanges reads a Range header with ascending ranges.
func parseRanges(h string) ([]span, bool) {
	list, ok := strings.CutPrefix(h, "bytes=")
	if !ok {
		return nil, false
	}
	var all []span
	for part := range strings.SplitSeq(list, ",") {
		from, to, ok := strings.Cut(strings.TrimSpace(part), "-")
		first, err := strconv.ParseInt(from, 10, 64)
		last := int64(-1)
		if err == nil && to != "" {
			last, err = strconv.ParseInt(to, 10, 64)
		}
		if !ok || err != nil || first < 0 || to != "" && last < first {
			return nil, false
		}
		if n := len(all); n > 0 && (all[n-1].last < 0 || all[n-1].last >= first) {
			return nil, false
		}
		all = append(all, span{first, last})
	}
	return all, true
}

// parseContentRange reads a Content-Range header; length is -1 when it is not known.
func parseContentRange(h string) (first, last, length int64, ok bool) {
	rest, ok := strings.CutPrefix(h, "bytes ")
	span, total, cut := strings.Cut(rest, "/")
	from, to, dash := strings.Cut(span, "-")
	if !ok || !cut || !dash {
		return 0, 0, 0, false
	}
	first, err1 := strconv.ParseInt(from, 10, 64)
	last, err2 := strconv.ParseInt(to, 10, 64)
	length = -1
	var err3 error
	if total != "*" {
		length, err3 = strconv.ParseInt(total, 10, 64)
	}
	if err := errors.Join(err1, err2, err3); err != nil || first < 0 || last < first || total != "*" && length <= last {
		return 0, 0, 0, false
	}
	return first, last, length, true
}

// rangesAnswer is what the library gets for a request of parts: one part as it is,
// several as multipart/byteranges.
type rangesAnswer struct {
	w      http.ResponseWriter
	wanted []span // what is not sent yet; the first one may have been sent in part
	begun  bool   // the header has been sent
	part   io.Writer
	multi  *multipart.Writer
	total  int64 // of the blob, -1 when it is not known
	sent   int64
}

var errWhole = errors.New("the registry does not send the ranges that it is asked for")

// rangeRefused is an answer that the library understands.
type rangeRefused struct {
	code   int
	status string
}

func (r *rangeRefused) Error() string { return r.status }

// fetch asks an endpoint for what is lacking, and sends what comes. again reports
// whether a failure is worth another attempt.
func (a *rangesAnswer) fetch(ctx context.Context, e *endpoint, d digest.Digest) (again bool, err error) {
	var list []string
	for _, s := range a.wanted {
		if s.last < 0 {
			list = append(list, fmt.Sprintf("%d-", s.first))
		} else {
			list = append(list, fmt.Sprintf("%d-%d", s.first, s.last))
		}
	}
	client := e.client
	if a.begun {
		client = e.fresh
	}
	header := http.Header{"Accept-Encoding": {"identity"}, "Range": {"bytes=" + strings.Join(list, ",")}}
	resp, err := e.do(ctx, client, http.MethodGet, "/v2/"+e.Repo+"/blobs/"+d.String(), header)
	if err != nil {
		return worthwhile(err), err
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK:
		if !a.begun {
			return false, errWhole
		}
		return true, a.pass(resp.Body, span{0, -1}, -1)
	case http.StatusPartialContent:
		if err = a.accept(resp); errors.Is(err, errRange) && !a.begun {
			return false, errWhole
		}
		return true, err
	}
	if refusesRange(resp.StatusCode) {
		return false, &rangeRefused{resp.StatusCode, statusOf(resp)}
	}
	return retryable(resp.StatusCode), statusError(resp)
}

// accept sends the parts of an answer.
func (a *rangesAnswer) accept(resp *http.Response) error {
	kind, params, err := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if boundary := rawBoundary(resp.Header.Get("Content-Type")); err != nil && boundary != "" {
		kind, params, err = "multipart/byteranges", map[string]string{"boundary": boundary}, nil
	}
	if err != nil || !strings.HasPrefix(kind, "multipart/") {
		if err := a.passPart(resp.Header.Get("Content-Range"), resp.Body); err != nil {
			return err
		}
		return a.lacking()
	}
	parts := multipart.NewReader(resp.Body, params["boundary"])
	for {
		part, err := parts.NextRawPart()
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return err
		}
		if err := a.passPart(part.Header.Get("Content-Range"), part); err != nil {
			return err
		}
	}
	return a.lacking()
}

// lacking returns an error unless all that is wanted has been sent.
func (a *rangesAnswer) lacking() error {
	if len(a.wanted) > 0 {
		return fmt.Errorf("%w: %w", errRange, io.ErrUnexpectedEOF)
	}
	return nil
}

// rawBoundary finds a boundary that is not quoted although it must be: CloudFront's.
func rawBoundary(contentType string) string {
	_, boundary, _ := strings.Cut(contentType, "multipart/byteranges; boundary=")
	return strings.Trim(boundary, `"`)
}

func (a *rangesAnswer) passPart(contentRange string, body io.Reader) error {
	first, last, total, ok := parseContentRange(contentRange)
	if !ok {
		return fmt.Errorf("%w: %w: it sent a part without its range", ErrNotRegistry, errRange)
	}
	return a.pass(body, span{first, last}, total)
}

// pass sends what is wanted of a body that is the part have of the blob.
func (a *rangesAnswer) pass(body io.Reader, have span, total int64) error {
	if !a.begun {
		a.total = total
	}
	for len(a.wanted) > 0 {
		s := &a.wanted[0]
		if s.first < have.first || have.last >= 0 && s.first > have.last {
			return nil // of another part
		}
		end := s.last
		if end < 0 {
			if end = a.total - 1; end < 0 {
				return fmt.Errorf("%w: it does not say how long the blob is", ErrNotRegistry)
			}
		}
		if _, err := io.CopyN(io.Discard, body, s.first-have.first); err != nil {
			return unexpected(err)
		}
		if err := a.begin(*s, end); err != nil {
			return err
		}
		n, err := io.CopyN(a.part, body, end-s.first+1)
		a.sent += n
		s.first += n
		have.first = s.first
		if err != nil {
			return unexpected(err)
		}
		a.wanted, a.part = a.wanted[1:], nil
	}
	return nil
}

// unexpected returns the error of a body that ended before it was whole.
func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// begin sends the header of the answer, or of its next part, once.
func (a *rangesAnswer) begin(s span, end int64) error {
	if a.part != nil {
		return nil // goes on
	}
	total := "*"
	if a.total >= 0 {
		total = strconv.FormatInt(a.total, 10)
	}
	contentRange := fmt.Sprintf("bytes %d-%d/%s", s.first, end, total)
	first := !a.begun
	a.begun = true
	if first && len(a.wanted) > 1 {
		a.multi = multipart.NewWriter(a.w)
		a.w.Header().Set("Content-Type", "multipart/byteranges; boundary="+a.multi.Boundary())
		a.w.WriteHeader(http.StatusPartialContent)
	}
	if a.multi == nil {
		a.w.Header().Set("Content-Type", "application/octet-stream")
		a.w.Header().Set("Content-Range", contentRange)
		a.w.Header().Set("Content-Length", strconv.FormatInt(end-s.first+1, 10))
		a.w.WriteHeader(http.StatusPartialContent)
		a.part = a.w
		return nil
	}
	part, err := a.multi.CreatePart(textproto.MIMEHeader{"Content-Type": {"application/octet-stream"}, "Content-Range": {contentRange}})
	a.part = part
	return err
}

func (a *rangesAnswer) finish() {
	if a.multi != nil {
		a.multi.Close()
	}
}
