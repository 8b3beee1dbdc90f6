package fetch

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"

	"github.com/subpod/subpod/tests/registry"
)

func basic(user, password string) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
}

// guarded starts a registry that answers 401 with challenge to what is without one of
// the headers good, for requests whose path contains part, and gives out tokens.
func guarded(t *testing.T, part, challenge string, token func(*http.Request) (int, string), good ...string) (*registry.Fake, []byte) {
	t.Helper()
	blob := noise(1000, 9)
	f := fake(t, registry.FakeOptions{}, blob)
	f.SetFault(func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/token" {
			code, body := token(r)
			w.WriteHeader(code)
			io.WriteString(w, body)
			return true
		}
		if !strings.Contains(r.URL.Path, part) || slices.Contains(good, r.Header.Get("Authorization")) {
			return false
		}
		if challenge != "" {
			for _, c := range strings.Split(strings.ReplaceAll(challenge, "HOST", r.Host), "\n") {
				w.Header().Add("WWW-Authenticate", c)
			}
		}
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	return f, blob
}

// TestFirst401: credentials are sent when they are first asked for, wherever that is.
func TestFirst401(t *testing.T) {
	const bearer = `Bearer realm="http://HOST/token",service="s",scope="repository:app:pull"`
	tokens := func(want string) func(*http.Request) (int, string) {
		return func(r *http.Request) (int, string) {
			if r.Header.Get("Authorization") != want || r.FormValue("service") != "s" || r.FormValue("scope") != "repository:app:pull" {
				return 401, `{"errors":[{"code":"DENIED","message":"wrong password"}]}`
			}
			return 200, `{"access_token":"tok","expires_in":300}`
		}
	}
	refresh := func(r *http.Request) (int, string) {
		if r.Method != http.MethodPost || r.PostFormValue("refresh_token") != "id" || r.PostFormValue("grant_type") != "refresh_token" || r.Header.Get("Authorization") != "" {
			return 400, "{}"
		}
		return 200, `{"token":"tok"}`
	}
	user := Credentials{Username: "usér", Password: "p:w €"}
	for _, part := range []string{"/v2/", "/manifests/", "/blobs/"} {
		for _, c := range []struct {
			what, challenge string
			token           func(*http.Request) (int, string)
			creds           Credentials
			good            string
			err             error
		}{
			{"password", `Basic realm="x"`, nil, user, basic(user.Username, user.Password), nil},
			{"wrong password", `Basic realm="x"`, nil, user, basic("other", "x"), ErrUnauthorized},
			{"no password", `Basic realm="x"`, nil, Credentials{}, basic("other", "x"), ErrUnauthorized},
			{"no challenge", "", nil, user, basic(user.Username, user.Password), ErrUnauthorized},
			{"anonymous token", bearer, tokens(""), Credentials{}, "Bearer tok", nil},
			{"token", bearer, tokens(basic(user.Username, user.Password)), user, "Bearer tok", nil},
			{"token refused", bearer, tokens("no"), user, "Bearer tok", ErrUnauthorized},
			{"identity token", bearer, refresh, Credentials{IdentityToken: "id"}, "Bearer tok", nil},
			{"wrong identity token", bearer, refresh, Credentials{IdentityToken: "no"}, "Bearer tok", ErrUnauthorized},
			{"registry token", bearer, nil, Credentials{RegistryToken: "given"}, "Bearer given", nil},
			{"wrong registry token", bearer, nil, Credentials{RegistryToken: "given"}, "Bearer other", ErrUnauthorized},
			{"several challenges", "Negotiate, Basic realm=\"x\", " + bearer, tokens(""), Credentials{}, "Bearer tok", nil},
			{"several headers", "Negotiate\nBasic realm=\"x\"\n" + bearer, tokens(""), Credentials{}, "Bearer tok", nil},
			{"capitals", `BEARER Realm="http://HOST/token", Service="s" , error="invalid_token"`, tokens(""), Credentials{}, "Bearer tok", nil},
		} {
			f, blob := guarded(t, part, c.challenge, c.token, c.good)
			e := endpointOf(f)
			e.Credentials = c.creds
			p, client := start(t, Config{Endpoints: []Endpoint{e}})
			resp, body, err := get(t, client, f.Addr, "manifests/1")
			if err == nil && resp.StatusCode == http.StatusOK && string(body) == manifest {
				resp, body, err = get(t, client, f.Addr, "blobs/"+digest.FromBytes(blob).String())
			}
			if err != nil || c.err == nil && (resp.StatusCode != http.StatusOK || string(body) != string(blob)) {
				t.Errorf("401 at %s, %s: %v %s %v", part, c.what, resp, body, p.Err())
			} else if c.err != nil && !errors.Is(p.Err(), c.err) {
				t.Errorf("401 at %s, %s: %v, want %v", part, c.what, p.Err(), c.err)
			}
		}
	}
}

// TestTokenEnds: a token that the registry no longer takes is replaced, and one for
// another scope is fetched where the registry asks for it.
func TestTokenEnds(t *testing.T) {
	var mu sync.Mutex
	n := 0
	f, _ := guarded(t, "", "", nil)
	f.SetFault(func(w http.ResponseWriter, r *http.Request) bool {
		mu.Lock()
		defer mu.Unlock()
		if r.URL.Path == "/token" {
			n++
			fmt.Fprintf(w, `{"token":"t%d %s"}`, n, r.FormValue("scope"))
			return true
		}
		if r.Header.Get("Authorization") == fmt.Sprintf("Bearer t%d more", n) {
			n++ // it was good once
			return false
		}
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token",error="insufficient_scope",scope="more"`, r.Host))
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	_, c := start(t, Config{Endpoints: []Endpoint{endpointOf(f)}})
	for range 3 {
		if resp, body, err := get(t, c, f.Addr, "manifests/1"); err != nil || string(body) != manifest {
			t.Errorf("%v %s %v", resp, body, err)
		}
	}
}

// TestNoCredentialsElsewhere: neither where a registry redirects to, nor to another
// endpoint, nor in plain to the token server of a registry that speaks TLS.
func TestNoCredentialsElsewhere(t *testing.T) {
	blob := noise(1000, 9)
	name := digest.FromBytes(blob).String()
	creds := Credentials{Username: "joe", Password: "secret"}
	store := fake(t, registry.FakeOptions{}, blob)
	secured := func(next http.HandlerFunc) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if r.Header.Get("Authorization") != basic("joe", "secret") {
				w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
				w.WriteHeader(http.StatusUnauthorized)
				return true
			}
			if strings.Contains(r.URL.Path, "/blobs/") {
				next(w, r)
				return true
			}
			return false
		}
	}
	for _, code := range []int{301, 302, 303, 307, 308} {
		f := fake(t, registry.FakeOptions{}, blob)
		f.SetFault(secured(func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://"+store.Addr+r.URL.Path+"?signed=1", code)
		}))
		e := endpointOf(f)
		e.Credentials = creds
		_, c := start(t, Config{Endpoints: []Endpoint{e}})
		wantBlob(t, c, f.Addr, blob)
	}
	// The other host asks for credentials: it gets none, and the next endpoint neither.
	asks := fake(t, registry.FakeOptions{}, blob)
	asks.SetFault(func(w http.ResponseWriter, r *http.Request) bool {
		w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	f := fake(t, registry.FakeOptions{}, blob)
	f.SetFault(secured(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://"+asks.Addr+r.URL.Path, http.StatusTemporaryRedirect)
	}))
	e := endpointOf(f)
	e.Credentials = creds
	p, c := start(t, Config{Endpoints: []Endpoint{e, endpointOf(asks)}})
	if resp, _, err := get(t, c, f.Addr, "blobs/"+name); err != nil || resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("%v %v", resp, err)
	}
	for _, other := range []*registry.Fake{store, asks} {
		if got := other.Credentials(); len(got) > 0 {
			t.Errorf("credentials were sent to another host: %q", got)
		}
	}
	if strings.Contains(p.Err().Error(), "secret") {
		t.Errorf("the error has the password: %v", p.Err())
	}
	// A refresh token is in the body, which a redirect would send again.
	moved, _ := guarded(t, "/v2/", `Bearer realm="http://HOST/token"`, nil)
	moved.SetFault(func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/token" {
			http.Redirect(w, r, "http://"+asks.Addr+"/token", http.StatusTemporaryRedirect)
		} else {
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token"`, r.Host))
			w.WriteHeader(http.StatusUnauthorized)
		}
		return true
	})
	e = endpointOf(moved)
	e.Credentials = Credentials{IdentityToken: "secret"}
	before := asks.Requests("POST")
	_, c = start(t, Config{Endpoints: []Endpoint{e}})
	if resp, _, err := get(t, c, moved.Addr, "manifests/1"); err != nil || resp.StatusCode == http.StatusOK || asks.Requests("POST") != before {
		t.Errorf("a refresh token followed a redirect: %v %v", resp, err)
	}
}

// TestPlainTokenServer: a registry with TLS can't have the credentials sent in plain.
func TestPlainTokenServer(t *testing.T) {
	plain := fake(t, registry.FakeOptions{})
	tls := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="http://%s/token"`, plain.Addr))
		w.WriteHeader(http.StatusUnauthorized)
	}))
	defer tls.Close()
	host := strings.TrimPrefix(tls.URL, "https://")
	conf := tls.Client().Transport.(*http.Transport).TLSClientConfig
	p, c := start(t, Config{Endpoints: []Endpoint{{Host: host, Repo: "app", TLS: conf, Credentials: Credentials{Username: "joe", Password: "secret"}}}})
	resp, _, err := get(t, c, host, "manifests/1")
	if err != nil || resp.StatusCode != http.StatusBadGateway || !errors.Is(p.Err(), ErrNotRegistry) || plain.Requests("/token") != 0 {
		t.Errorf("%v %v %v", resp, err, p.Err())
	}
	// Without the certificate nobody is asked at all.
	p, c = start(t, Config{Endpoints: []Endpoint{{Host: host, Repo: "app"}}})
	if _, _, err := get(t, c, host, "manifests/1"); err != nil || !strings.Contains(p.Err().Error(), "x509") {
		t.Errorf("unknown authority: %v %v", err, p.Err())
	}
}

func TestParseChallenges(t *testing.T) {
	for in, want := range map[string]string{
		``:                               `[]`,
		`Basic`:                          `[{basic map[]}]`,
		`Basic realm=x`:                  `[{basic map[realm:x]}]`,
		`Bearer realm="a\"b,c",x=1`:      `[{bearer map[realm:a"b,c x:1]}]`,
		`A, B x="1", y=2,C z = "3"`:      `[{a map[]} {b map[x:1 y:2]} {c map[z:3]}]`,
		`Bearer realm="never ends`:       `[{bearer map[]}]`,
		`x="1"`:                          `[]`,
		`Bearer realm=`:                  `[{bearer map[]}]`,
		`Bearer realm="h",, scope="a b"`: `[{bearer map[realm:h scope:a b]}]`,
	} {
		if got := fmt.Sprint(parseChallenges(http.Header{"Www-Authenticate": {in}})); got != want {
			t.Errorf("%q: %s, want %s", in, got, want)
		}
	}
}
