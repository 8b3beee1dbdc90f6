package fetch

import (
	"context"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"
)

// askTimeout bounds Ask. Where it does not suffice, the library asks, with all retries.
const askTimeout = 5 * time.Second

// asked is the answer that Ask got, kept for the library's first question.
type asked struct {
	e            *endpoint
	name, accept string
	contentType  string
	body         []byte
}

// Ask asks the first endpoint, once, for the manifest with this tag or digest, and
// returns it as it is: nothing of it is read. The answer is kept for the library, which
// asks the same when the caller has no use for it. An error says no more than that the
// library must ask.
func (p *Proxy) Ask(ctx context.Context, name string, accept []string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	e := p.endpoints[0]
	resp, err := e.do(ctx, e.client, http.MethodGet, "/v2/"+e.Repo+"/manifests/"+name, http.Header{"Accept": accept})
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, statusError(resp)
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxManifest))
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked = &asked{e: e, name: name, accept: acceptKey(accept), contentType: resp.Header.Get("Content-Type"), body: body}
	return body, nil
}

func acceptKey(accept []string) string {
	var all []string
	for _, v := range accept {
		for t := range strings.SplitSeq(v, ",") {
			all = append(all, strings.TrimSpace(t))
		}
	}
	slices.Sort(all)
	return strings.Join(all, ",")
}

// answered returns what Ask got for the same question, once.
func (e *endpoint) answered(r *http.Request, kind, name string) (contentType string, body []byte, ok bool) {
	if r.Method != http.MethodGet || kind != "manifests" {
		return "", nil, false
	}
	p := e.p
	p.mu.Lock()
	defer p.mu.Unlock()
	a := p.asked
	if a == nil || a.e != e || a.name != name || a.accept != acceptKey(r.Header.Values("Accept")) {
		return "", nil, false
	}
	p.asked = nil
	return a.contentType, a.body, true
}
