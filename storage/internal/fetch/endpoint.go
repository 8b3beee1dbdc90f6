package fetch

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// endpoint sends requests to a registry or a mirror.
type endpoint struct {
	Endpoint
	p     *Proxy
	last  bool // no other is left to be asked after it
	scope string
	auth  *authenticator
	// client keeps connections; fresh opens one for each request, for what broke on an
	// old one.
	client, fresh *http.Client

	delivered  atomic.Bool   // a blob, or a part of one
	distrusted atomic.Bool   // see Distrust
	known      chan struct{} // taken while the scheme is being found out
	scheme     string        // "" until then
	signatures string        // what it says about an extension for signatures
}

func newEndpoint(p *Proxy, e Endpoint, last bool) *endpoint {
	ep := &endpoint{Endpoint: e, p: p, last: last, scope: "repository:" + e.Repo + ":pull", known: make(chan struct{}, 1)}
	ep.auth = newAuthenticator(ep)
	conf := &tls.Config{}
	if e.TLS != nil {
		conf = e.TLS.Clone()
	}
	conf.InsecureSkipVerify = e.Insecure
	ep.client, ep.fresh = ep.newClient(conf, false), ep.newClient(conf, true)
	return ep
}

func (e *endpoint) newClient(conf *tls.Config, fresh bool) *http.Client {
	dialer := &net.Dialer{Timeout: min(30*time.Second, e.patience()), KeepAlive: 15 * time.Second}
	return &http.Client{CheckRedirect: redirected, Transport: &http.Transport{
		Proxy: http.ProxyFromEnvironment, DialContext: dialer.DialContext, TLSClientConfig: conf,
		TLSHandshakeTimeout:    min(10*time.Second, e.patience()/2),
		ResponseHeaderTimeout:  e.patience(),
		IdleConnTimeout:        15 * time.Second,
		MaxIdleConnsPerHost:    8,
		DisableKeepAlives:      fresh,
		MaxResponseHeaderBytes: 256 << 10,
	}}
}

func (e *endpoint) close() {
	e.client.CloseIdleConnections()
	e.fresh.CloseIdleConnections()
}

// patience is how long the endpoint may be silent: short where others can be asked. For
// the last one the pull's own limit comes first, unless something else moves.
func (e *endpoint) patience() time.Duration {
	if e.last {
		return e.p.cfg.Timeout * 5 / 4
	}
	return e.p.cfg.Timeout / 4
}

// tries is how often a request is sent before the endpoint is given up.
func (e *endpoint) tries() int {
	if e.last {
		return 5
	}
	return 2
}

// dressed adds to a request what all have. req may be nil.
func (e *endpoint) dressed(req *http.Request) *http.Request {
	if req != nil {
		req.Header.Set("User-Agent", e.p.cfg.UserAgent)
	}
	return req
}

// again sends a request until its answer is not one that may change soon, the
// endpoint's tries are used up, or ctx ends.
func (e *endpoint) again(ctx context.Context, what string, send func(context.Context) (*http.Response, error)) (*http.Response, error) {
	for try := 1; ; try++ {
		resp, err := send(ctx)
		if err == nil && (!retryable(resp.StatusCode) || try >= e.tries()) {
			return resp, nil
		}
		if err != nil && (!worthwhile(err) || try >= e.tries()) {
			return nil, unavailable(err)
		}
		asked := time.Duration(0)
		if err == nil {
			if asked = retryAfter(resp.Header); asked > 0 && !e.last {
				return resp, nil // another one need not wait
			}
			discard(resp)
			err = errors.New(statusOf(resp))
		}
		e.p.cfg.Log.Debug("request is sent again", "registry", e.Host, "what", what, "try", try, "error", err)
		if e.p.wait(ctx, try, asked) != nil {
			return nil, unavailable(err) // says more than that nobody waits any more
		}
	}
}

// worthwhile reports whether a request that failed with err is worth sending again. A
// silent endpoint had its time, and a token server its tries.
func worthwhile(err error) bool {
	var timeout net.Error
	return transient(err) && !errors.Is(err, ErrUnavailable) && !(errors.As(err, &timeout) && timeout.Timeout())
}

// unavailable adds the sentinel to an error of the network.
func unavailable(err error) error {
	for _, s := range []error{ErrUnauthorized, ErrNotFound, ErrUnavailable, ErrNotRegistry, context.Canceled} {
		if errors.Is(err, s) {
			return err
		}
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}

// wait waits before the attempt after number try (0: after one that brought much): as long as the registry asked for, or
// longer each time, at random so that pulls that failed together do not come back so.
func (p *Proxy) wait(ctx context.Context, try int, asked time.Duration) error {
	wait := min(p.cfg.Delay<<try/2, 8*time.Second)
	wait = wait/2 + rand.N(wait+1)
	until := time.Now().Add(max(wait, asked))
	for {
		left := time.Until(until)
		if left <= 0 {
			return nil
		}
		if asked > 0 {
			p.moved.Add(1) // the registry wants it so
		}
		select {
		case <-time.After(min(left, time.Second)):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// do sends one request, in the scheme that the endpoint speaks, with the credentials
// that it asks for.
func (e *endpoint) do(ctx context.Context, client *http.Client, method, path string, header http.Header) (*http.Response, error) {
	if err := e.detect(ctx); err != nil {
		return nil, err
	}
	auth, err := e.auth.header(ctx, e.scope)
	for try := 0; err == nil; try++ {
		var req *http.Request
		if req, err = http.NewRequestWithContext(ctx, method, e.url(path).String(), nil); err != nil {
			return nil, err
		}
		if header != nil {
			req.Header = header.Clone()
		}
		if auth != "" {
			req.Header.Set("Authorization", auth)
		}
		var resp *http.Response
		if resp, err = e.send(client, e.dressed(req)); err != nil {
			return nil, err
		}
		if resp.StatusCode != http.StatusUnauthorized || try == 2 || !sameServer(resp.Request.URL, req.URL) {
			return resp, nil
		}
		var now string
		if now, err = e.auth.refused(ctx, resp, e.scope, auth); err == nil && now == "" {
			return resp, nil
		}
		discard(resp)
		auth = now
	}
	return nil, err
}

// send sends a request. Its error has no more of an address than what is no secret:
// storage that a registry redirects to takes signed ones.
// Its body ends when next to nothing comes.
func (e *endpoint) send(client *http.Client, req *http.Request) (*http.Response, error) {
	ctx, stop := context.WithCancelCause(req.Context())
	resp, err := client.Do(req.WithContext(ctx))
	if err != nil {
		stop(nil)
	} else {
		resp.Body = &patientBody{ReadCloser: resp.Body, stop: stop, moved: func() { e.p.moved.Add(1) }, limit: e.patience()}
	}
	var failed *url.Error
	if errors.As(err, &failed) {
		failed.URL, _, _ = strings.Cut(failed.URL, "?")
		failed.URL = failed.URL[:min(len(failed.URL), 200)]
	}
	return resp, err
}

// sameServer reports whether an answer came from where it was asked for. What another
// one, or anybody on a line in plain HTTP, wants credentials for, gets none.
func sameServer(a, b *url.URL) bool { return a.Scheme == b.Scheme && a.Host == b.Host }

func (e *endpoint) url(path string) *url.URL {
	u := &url.URL{Scheme: e.scheme, Host: e.Host, Path: path}
	if e.Namespace != "" {
		u.RawQuery = url.Values{"ns": {e.Namespace}}.Encode()
	}
	return u
}

// detect finds out, once, whether the endpoint speaks HTTPS, and what it asks for. The
// answer need not be good: some registries have nothing there.
func (e *endpoint) detect(ctx context.Context) error {
	select {
	case e.known <- struct{}{}:
		defer func() { <-e.known }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if e.scheme != "" {
		return nil
	}
	schemes := []string{"https"}
	if e.Insecure || e.Local {
		schemes = append(schemes, "http")
	}
	var failed error
	for _, scheme := range schemes {
		u := url.URL{Scheme: scheme, Host: e.Host, Path: "/v2/"}
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
		if err != nil {
			return err
		}
		resp, err := e.send(e.client, e.dressed(req))
		if err != nil {
			failed = err
			if e.Insecure || noTLS(err) {
				continue
			}
			return err
		}
		discard(resp)
		if failed != nil && resp.StatusCode == http.StatusBadRequest {
			continue // it does speak TLS
		}
		if resp.StatusCode == http.StatusUnauthorized && sameServer(resp.Request.URL, &u) {
			e.auth.challenges = parseChallenges(resp.Header)
		}
		e.signatures = resp.Header.Get("X-Registry-Supports-Signatures")
		e.scheme = scheme
		return nil
	}
	return failed
}

// noTLS reports whether what answered may not speak TLS: it said something else, or nothing.
func noTLS(err error) bool {
	var record tls.RecordHeaderError
	return errors.Is(err, http.ErrSchemeMismatch) || errors.As(err, &record) || errors.Is(err, io.EOF) || errors.Is(err, unix.ECONNRESET)
}

// discard reads the little that an answer may still hold, so that its connection can be
// used again, and closes it.
func discard(resp *http.Response) {
	hurry(resp)
	io.CopyN(io.Discard, resp.Body, 16<<10)
	resp.Body.Close()
}
