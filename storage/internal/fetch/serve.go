package fetch

import (
	"bytes"
	"context"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"path"
	"strconv"
	"strings"

	"github.com/opencontainers/go-digest"
)

// ServeHTTP answers the library.
func (p *Proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !hasSecret(r, p.secret) {
		http.Error(w, "not yours", http.StatusProxyAuthRequired)
		return
	}
	p.guests.know(r)
	if r.Method != http.MethodGet && r.Method != http.MethodHead && r.Method != http.MethodConnect {
		http.Error(w, errRefuse.Error(), http.StatusMethodNotAllowed)
		return
	}
	end := begin(r.Context(), p)
	if end == nil {
		panic(http.ErrAbortHandler)
	}
	defer end()
	if r.Method == http.MethodConnect || !p.Route().isAPI(r.URL) {
		serveElsewhere(p, w, r)
		return
	}
	e, kind, name := p.find(r)
	switch {
	case e == nil:
		http.Error(w, errRefuse.Error(), http.StatusNotFound)
	case e.distrusted.Load():
		p.fail(w, &Error{What: strings.TrimSuffix(kind, "s") + " " + name, Host: e.Host, Err: notRegistry("what does not have its digest")})
	case kind == "ping":
		p.servePing(r.Context(), w, e)
	case kind == "blobs" && r.Method == http.MethodGet && r.Header.Get("Range") == "":
		p.serveBlob(w, r, e, digest.Digest(name))
	case kind == "blobs" && r.Method == http.MethodGet:
		p.serveRanges(w, r, e, digest.Digest(name))
	default:
		e.serveWhole(w, r, kind, name)
	}
}

// begin waits for a request's turn and returns what ends it, nil where p is closed or
// the library has gone.
func begin(ctx context.Context, p *Proxy) (end func()) {
	select {
	case p.requests <- struct{}{}:
	case <-ctx.Done():
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.shut {
		<-p.requests
		return nil
	}
	p.work.Add(1)
	return func() {
		p.work.Done()
		<-p.requests
	}
}

// hasSecret reports whether a request has the secret of the proxy's URL.
func hasSecret(r *http.Request, secret string) bool {
	check := http.Request{Header: http.Header{"Authorization": r.Header.Values("Proxy-Authorization")}}
	_, got, _ := check.BasicAuth()
	return subtle.ConstantTimeCompare([]byte(got), []byte(secret)) == 1
}

// find returns which endpoint a request is for, and what it wants: "ping", "manifests",
// "blobs" or "" with its name. A path that leads elsewhere by ".." is for none: the
// credentials are only for reading this image.
func (p *Proxy) find(r *http.Request) (e *endpoint, kind, name string) {
	if clean := path.Clean(r.URL.Path); clean != r.URL.Path && r.URL.Path != "/v2/" {
		return nil, "", ""
	}
	for _, e := range p.endpoints {
		if e.Host != r.URL.Host {
			continue
		}
		if r.URL.Path == "/v2/" {
			return e, "ping", ""
		}
		if rest, ok := strings.CutPrefix(r.URL.Path, "/v2/"+e.Repo+"/"); ok {
			if kind, name, _ = strings.Cut(rest, "/"); kind != "manifests" && kind != "blobs" || strings.Contains(name, "/") {
				return nil, "", "" // of another repository
			}
			return e, kind, name
		}
		if strings.HasPrefix(r.URL.Path, "/extensions/v2/"+e.Repo+"/") {
			return e, "", ""
		}
	}
	return nil, "", ""
}

// servePing answers the library's first question: no credentials are needed here.
func (p *Proxy) servePing(ctx context.Context, w http.ResponseWriter, e *endpoint) {
	for try := 1; ; try++ {
		err := e.detect(ctx)
		if err == nil {
			break
		}
		if !worthwhile(err) || try >= 3 || p.wait(ctx, try, 0) != nil {
			p.fail(w, &Error{What: "/v2/", Host: e.Host, Tries: try, Err: unavailable(err)})
			return
		}
	}
	if e.signatures != "" {
		w.Header().Set("X-Registry-Supports-Signatures", e.signatures)
	}
	w.WriteHeader(http.StatusOK)
}

// maxManifest is one byte more than the library reads of a manifest.
const maxManifest = 4<<20 + 1

// serveWhole answers with a manifest, or whatever is small and no blob.
func (e *endpoint) serveWhole(w http.ResponseWriter, r *http.Request, kind, name string) {
	select {
	case e.p.wholes <- struct{}{}:
		defer func() { <-e.p.wholes }()
	case <-r.Context().Done():
		panic(http.ErrAbortHandler)
	}
	what := strings.TrimSuffix(kind, "s") + " " + name
	if contentType, body, ok := e.answered(r, kind, name); ok {
		e.answerManifest(w, name, contentType, body)
		return
	}
	var body []byte
	resp, err := e.again(r.Context(), what, func(ctx context.Context) (*http.Response, error) {
		header := http.Header{}
		for _, v := range r.Header.Values("Accept") {
			header.Add("Accept", v)
		}
		resp, err := e.do(ctx, e.client, r.Method, r.URL.Path, header)
		if err != nil {
			return nil, err
		}
		defer resp.Body.Close()
		body, err = io.ReadAll(io.LimitReader(resp.Body, maxManifest))
		resp.Body = io.NopCloser(bytes.NewReader(body))
		return resp, err
	})
	if err == nil && resp.StatusCode != http.StatusOK {
		e.p.failStatus(w, what, e, resp)
		return
	}
	if err == nil && kind == "manifests" && r.Method == http.MethodGet {
		e.answerManifest(w, name, resp.Header.Get("Content-Type"), body)
		return
	}
	if err != nil {
		e.p.fail(w, &Error{What: what, Host: e.Host, Err: err})
		return
	}
	length := strconv.Itoa(len(body))
	if r.Method == http.MethodHead {
		length = resp.Header.Get("Content-Length")
	}
	e.answer(w, resp.Header.Get("Content-Type"), length, body)
}

// answerManifest answers with a manifest, if it is one.
func (e *endpoint) answerManifest(w http.ResponseWriter, name, contentType string, body []byte) {
	contentType, err := e.checkManifest(contentType, name, body)
	if err != nil {
		e.p.fail(w, &Error{What: "manifest " + name, Host: e.Host, Err: err})
		return
	}
	e.p.preferred.Store(e)
	e.answer(w, contentType, strconv.Itoa(len(body)), body)
}

func (e *endpoint) answer(w http.ResponseWriter, contentType, length string, body []byte) {
	e.p.moved.Add(1)
	e.p.setErr(nil)
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("Content-Length", length)
	w.Write(body)
}

// checkManifest refuses what is no manifest, where another endpoint may have a better
// one, and returns its type: registries that do not know it say anything.
func (e *endpoint) checkManifest(contentType, name string, body []byte) (string, error) {
	if strings.HasPrefix(strings.TrimSpace(string(body[:min(len(body), 512)])), "<") {
		return "", notRegistry("a web page, as of a proxy that wants a login")
	}
	var m struct {
		MediaType     string `json:"mediaType"`
		SchemaVersion int    `json:"schemaVersion"`
		// As they are: a list of a million elements takes many times the memory.
		Manifests json.RawMessage `json:"manifests"`
		Config    json.RawMessage `json:"config"`
	}
	if err := json.Unmarshal(body, &m); err != nil && !e.last {
		return "", notRegistry("a manifest that is no JSON")
	}
	if d := digest.Digest(name); !e.last && d.Validate() == nil && d.Algorithm().FromBytes(body) != d {
		return "", notRegistry("a manifest with another digest")
	}
	given, _, _ := strings.Cut(strings.ToLower(strings.TrimSpace(contentType)), ";")
	given = strings.TrimSpace(given)
	if isManifestType(given) && !strings.Contains(given, "docker.distribution.manifest.v1") {
		return given, nil
	}
	switch {
	case isManifestType(m.MediaType):
		return m.MediaType, nil
	case m.SchemaVersion == 2 && bytes.HasPrefix(m.Manifests, []byte("[")):
		return "application/vnd.oci.image.index.v1+json", nil
	case m.SchemaVersion == 2 && m.Config != nil:
		return "application/vnd.oci.image.manifest.v1+json", nil
	}
	return contentType, nil
}

// isManifestType reports whether a media type is one that manifests have.
func isManifestType(t string) bool {
	switch t {
	case "application/vnd.oci.image.manifest.v1+json", "application/vnd.oci.image.index.v1+json",
		"application/vnd.docker.distribution.manifest.v2+json", "application/vnd.docker.distribution.manifest.list.v2+json",
		"application/vnd.docker.distribution.manifest.v1+json", "application/vnd.docker.distribution.manifest.v1+prettyjws":
		return true
	}
	return false
}

func notRegistry(what string) error {
	return errors.Join(ErrNotRegistry, errors.New("it sent "+what))
}

// failStatus passes on an answer that is not the expected one.
func (p *Proxy) failStatus(w http.ResponseWriter, what string, e *endpoint, resp *http.Response) {
	defer resp.Body.Close()
	p.fail(w, &Error{What: what, Host: e.Host, Status: resp.StatusCode, Err: statusError(resp)})
}

// fail tells the library that a request failed, and keeps the reason.
func (p *Proxy) fail(w http.ResponseWriter, err *Error) {
	p.setErr(err)
	code, name := http.StatusBadGateway, "UNAVAILABLE"
	switch {
	case errors.Is(err, ErrUnauthorized):
		code, name = http.StatusUnauthorized, "UNAUTHORIZED"
	case errors.Is(err, ErrNotFound) && strings.HasPrefix(err.What, "blob"):
		code, name = http.StatusNotFound, "BLOB_UNKNOWN"
	case errors.Is(err, ErrNotFound):
		code, name = http.StatusNotFound, "MANIFEST_UNKNOWN"
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	json.NewEncoder(w).Encode(map[string]any{"errors": []map[string]string{{"code": name, "message": err.Error()}}})
}
