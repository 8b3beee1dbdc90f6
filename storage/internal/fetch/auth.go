package fetch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// authenticator answers the challenges of one endpoint. No request carries credentials
// before the endpoint has asked for some, whichever request that is.
//
// Credentials go to the endpoint's host and port, and to the token server that the
// endpoint itself names: never to where it redirects to, never over plain HTTP if the
// endpoint speaks HTTPS.
type authenticator struct {
	e    *endpoint
	turn chan struct{} // taken while a token is requested: others wait for it, or for their end
	// challenges of the endpoint, the last ones.
	challenges []challenge
	tokens     map[string]token // by scope
}

func newAuthenticator(e *endpoint) *authenticator {
	return &authenticator{e: e, turn: make(chan struct{}, 1), tokens: map[string]token{}}
}

func (a *authenticator) lock(ctx context.Context) error {
	select {
	case a.turn <- struct{}{}:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (a *authenticator) unlock() { <-a.turn }

// Bounds of what an endpoint can have kept here: tokens, and the bytes of each. Servers
// take no longer headers.
const (
	maxTokens = 16
	maxToken  = 64 << 10
)

// token of a token server.
type token struct {
	value string
	until time.Time
}

// header returns the Authorization header for a request, "" for none.
func (a *authenticator) header(ctx context.Context, scope string) (string, error) {
	if err := a.lock(ctx); err != nil {
		return "", err
	}
	defer a.unlock()
	return a.answer(ctx, scope)
}

// refused takes in the challenges of an answer 401 to a request that had the header
// sent, and returns a header to try with, "" if there is no other.
func (a *authenticator) refused(ctx context.Context, resp *http.Response, scope, sent string) (string, error) {
	if err := a.lock(ctx); err != nil {
		return "", err
	}
	defer a.unlock()
	if asked := parseChallenges(resp.Header); len(asked) > 0 {
		a.challenges = asked
	}
	for _, c := range a.challenges {
		if c.scheme == "bearer" && c.params["error"] == "insufficient_scope" && c.params["scope"] != "" {
			scope = c.params["scope"]
		}
	}
	if t, ok := a.tokens[scope]; ok && sent == "Bearer "+t.value {
		delete(a.tokens, scope) // it has ended early
	}
	now, err := a.answer(ctx, scope)
	if err != nil || now == sent {
		return "", err
	}
	return now, nil
}

// answer returns the header for the strongest challenge that can be met.
func (a *authenticator) answer(ctx context.Context, scope string) (string, error) {
	creds := a.e.Credentials
	for _, c := range a.challenges {
		if c.scheme != "bearer" || c.params["realm"] == "" {
			continue
		}
		if creds.RegistryToken != "" {
			return "Bearer " + creds.RegistryToken, nil
		}
		t, ok := a.tokens[scope]
		if !ok || time.Now().After(t.until) {
			var err error
			if t, err = a.fetchToken(ctx, c, scope); err != nil {
				return "", err
			}
			if len(a.tokens) >= maxTokens {
				clear(a.tokens) // the registry chooses the scopes
			}
			a.tokens[scope] = t
		}
		return "Bearer " + t.value, nil
	}
	for _, c := range a.challenges {
		if c.scheme == "basic" && creds.Username != "" {
			r := http.Request{Header: http.Header{}}
			r.SetBasicAuth(creds.Username, creds.Password)
			return r.Header.Get("Authorization"), nil
		}
	}
	return "", nil
}

// fetchToken asks the token server that challenge c names.
func (a *authenticator) fetchToken(ctx context.Context, c challenge, scope string) (token, error) {
	realm, err := url.Parse(c.params["realm"])
	if err != nil || realm.Host == "" || realm.Scheme != "https" && realm.Scheme != "http" {
		return token{}, fmt.Errorf("%w: it names no token server", ErrNotRegistry)
	}
	if realm.Scheme == "http" && a.e.scheme == "https" && !a.e.Insecure {
		return token{}, fmt.Errorf("%w: it wants credentials sent to %s over plain HTTP", ErrNotRegistry, realm.Host)
	}
	realm.User = nil
	what := fmt.Sprintf("token from %.100s", realm.Host)
	resp, err := a.e.again(ctx, what, func(ctx context.Context) (*http.Response, error) {
		req, err := a.tokenRequest(ctx, realm, c, scope)
		if err != nil {
			return nil, err
		}
		return a.e.send(a.e.client, req)
	})
	if err != nil {
		return token{}, err
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusBadRequest || resp.StatusCode == http.StatusNotFound {
		// RFC 6749 says 400 for credentials that are not valid.
		return token{}, fmt.Errorf("%w: %s: %s", ErrUnauthorized, what, statusOf(resp))
	} else if resp.StatusCode != http.StatusOK {
		return token{}, fmt.Errorf("%s: %w", what, statusError(resp))
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return token{}, fmt.Errorf("%s: %w", what, err)
	}
	var t struct {
		Token       string          `json:"token"`
		AccessToken string          `json:"access_token"`
		ExpiresIn   json.RawMessage `json:"expires_in"`
	}
	if err := json.Unmarshal(body, &t); err != nil {
		return token{}, fmt.Errorf("%w: %s: it is no JSON", ErrNotRegistry, what)
	}
	value := t.Token
	if value == "" {
		value = t.AccessToken
	}
	if value == "" || len(value) > maxToken || strings.ContainsAny(value, "\r\n") {
		return token{}, fmt.Errorf("%w: %s: there is none in the answer", ErrNotRegistry, what)
	}
	// From now on, whatever the server's clock says. The specification's least is a minute.
	var seconds int
	if json.Unmarshal(t.ExpiresIn, &seconds) != nil {
		seconds = 0
	}
	return token{value: value, until: time.Now().Add(time.Duration(max(seconds, 60)-5) * time.Second)}, nil
}

// tokenRequest makes the request for a token: a POST with a refresh token, a GET
// otherwise.
func (a *authenticator) tokenRequest(ctx context.Context, realm *url.URL, c challenge, scope string) (*http.Request, error) {
	creds, u := a.e.Credentials, *realm
	q := u.Query()
	set := func(key, value string) {
		if value != "" {
			q.Set(key, value)
		}
	}
	if creds.IdentityToken != "" {
		q = url.Values{}
	}
	set("service", c.params["service"])
	set("scope", scope)
	if creds.IdentityToken == "" {
		set("account", creds.Username)
		u.RawQuery = q.Encode()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
		if err == nil && creds.Username != "" {
			req.SetBasicAuth(creds.Username, creds.Password)
		}
		return a.e.dressed(req), err
	}
	set("grant_type", "refresh_token")
	set("refresh_token", creds.IdentityToken)
	set("client_id", "subpod")
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), strings.NewReader(q.Encode()))
	if err == nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	return a.e.dressed(req), err
}

// errLeaves ends a request that would carry credentials to another host.
var errLeaves = errors.New("redirected to another host with credentials in the request's body")

// redirected is http.Client's CheckRedirect: what leads to another host, port or scheme
// goes without credentials.
func redirected(req *http.Request, via []*http.Request) error {
	if len(via) >= 10 {
		return fmt.Errorf("%w: it redirects for ever", ErrNotRegistry)
	}
	req.Header.Del("Referer") // the address itself may be signed
	for _, before := range via {
		if before.URL.Scheme == req.URL.Scheme && before.URL.Host == req.URL.Host {
			continue
		}
		req.Header.Del("Authorization")
		if req.Method == http.MethodPost {
			return errLeaves
		}
	}
	return nil
}
