package fetch

import (
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/subpod/subpod/tests/registry"
)

// TestOnlyThisImage: who has the secret, which may be somebody who has taken over the
// library, cannot use the credentials for anything but this image.
func TestOnlyThisImage(t *testing.T) {
	f := fake(t, registry.FakeOptions{})
	f.Push("other", "1", manifestType, []byte(manifest), nil)
	_, c := start(t, Config{Endpoints: []Endpoint{endpointOf(f)}})
	for _, path := range []string{"../other/manifests/1", "manifests/../../other/manifests/1", "%2e%2e/other/manifests/1",
		"manifests/..%2f..%2fother%2fmanifests%2f1", "../_catalog", "sub/manifests/1", "tags/list", "manifests//1"} {
		resp, _, err := get(t, c, f.Addr, path)
		if err != nil || resp.StatusCode != http.StatusNotFound {
			t.Errorf("%s: %v %v", path, resp, err)
		}
	}
	if n := f.Requests("GET /v2/"); n != 0 {
		t.Errorf("the registry was asked %d times", n)
	}
}

// TestGivenUpWhileSending: the registry gives up while the library is slow to read what
// has come so far. That ends the answer, with no further attempt, and Close ends.
func TestGivenUpWhileSending(t *testing.T) {
	blob := noise(32<<20, 11)
	name := digest.FromBytes(blob).String()
	f := fake(t, registry.FakeOptions{}, blob)
	refused := make(chan struct{}, 10)
	f.SetFault(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, name) {
			return false
		}
		if r.Header.Get("Range") != "" {
			w.WriteHeader(http.StatusNotFound)
			refused <- struct{}{}
			return true
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(blob)))
		w.Write(blob[:24<<20])
		panic(http.ErrAbortHandler)
	})
	p, c := start(t, Config{Endpoints: []Endpoint{endpointOf(f)}, Spool: newSpool(t)})
	resp, err := c.Get("http://" + f.Addr + "/v2/app/blobs/" + name)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	<-refused
	for { // until the download has ended
		p.mu.Lock()
		b := p.blobs[name]
		p.mu.Unlock()
		b.mu.Lock()
		fetching := b.fetching
		b.mu.Unlock()
		if !fetching {
			break
		}
		time.Sleep(time.Millisecond)
	}
	if _, err := io.Copy(io.Discard, resp.Body); err == nil {
		t.Error("the answer is whole")
	}
	if n := f.Requests("GET /v2/app/blobs/"); n != 2 {
		t.Errorf("the blob was asked for %d times, want 2", n)
	}
	closed := make(chan struct{})
	go func() {
		p.Close(false)
		close(closed)
	}()
	select {
	case <-closed:
	case <-time.After(time.Minute):
		t.Fatal("Close does not end")
	}
}

// TestSignedAddress: an error does not have the secret part of an address that the
// registry redirects to.
func TestSignedAddress(t *testing.T) {
	nobody, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody.Close()
	blob := noise(10, 12)
	f := fake(t, registry.FakeOptions{}, blob)
	f.SetFault(func(w http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/blobs/") {
			http.Redirect(w, r, "http://"+nobody.Addr().String()+"/x?signature=secret", http.StatusTemporaryRedirect)
			return true
		}
		return false
	})
	p, c := start(t, Config{Endpoints: []Endpoint{endpointOf(f)}})
	_, body, err := get(t, c, f.Addr, "blobs/"+digest.FromBytes(blob).String())
	if said := fmt.Sprint(p.Err(), string(body)); err != nil || !strings.Contains(said, nobody.Addr().String()) || strings.Contains(said, "secret") {
		t.Errorf("%v %s", err, said)
	}
}

// TestRepeatedCredentials: a registry, or its token server, that repeats in an error what it
// was sent has it in no error of ours.
func TestRepeatedCredentials(t *testing.T) {
	repeat := func(r *http.Request) (int, string) {
		body, _ := io.ReadAll(r.Body)
		form, _ := url.ParseQuery(string(body))
		_, password, _ := r.BasicAuth()
		return http.StatusForbidden, fmt.Sprintf(`{"errors":[{"code":"DENIED","message":%q}]}`, fmt.Sprint(r.Header, password, form))
	}
	for name, c := range map[string]struct {
		challenge string
		creds     Credentials
	}{
		"password":       {`Basic realm="x"`, Credentials{Username: "me", Password: "hunter-secret"}},
		"bearer":         {`Bearer realm="http://HOST/token"`, Credentials{RegistryToken: "token-secret"}},
		"long token":     {`Bearer realm="http://HOST/token"`, Credentials{RegistryToken: strings.Repeat("token-secret", 400)}},
		"token server":   {`Bearer realm="http://HOST/token"`, Credentials{Username: "me", Password: "hunter-secret"}},
		"identity token": {`Bearer realm="http://HOST/token"`, Credentials{IdentityToken: "id/secret"}},
	} {
		t.Run(name, func(t *testing.T) {
			f := fake(t, registry.FakeOptions{}, noise(10, 13))
			f.SetFault(func(w http.ResponseWriter, r *http.Request) bool {
				if r.URL.Path != "/token" && r.Header.Get("Authorization") == "" {
					w.Header().Set("WWW-Authenticate", strings.ReplaceAll(c.challenge, "HOST", r.Host))
					w.WriteHeader(http.StatusUnauthorized)
					return true
				}
				code, text := repeat(r)
				w.WriteHeader(code)
				io.WriteString(w, text)
				return true
			})
			e := endpointOf(f)
			e.Credentials = c.creds
			p, client := start(t, Config{Endpoints: []Endpoint{e}})
			_, body, err := get(t, client, f.Addr, "manifests/1")
			said := fmt.Sprint(p.Err(), string(body))
			basic := base64.StdEncoding.EncodeToString([]byte("me:hunter-secret"))
			if err != nil || !strings.Contains(said, "403") || strings.Contains(said, "secret") || strings.Contains(said, basic) {
				t.Errorf("%v %s", err, said)
			}
		})
	}
}

// TestHugeToken: a token server cannot have the server keep, and send, what is no token.
func TestHugeToken(t *testing.T) {
	huge := strings.Repeat("x", maxToken+1)
	f, _ := guarded(t, "/v2/", `Bearer realm="http://HOST/token"`, func(*http.Request) (int, string) {
		return http.StatusOK, fmt.Sprintf(`{"token":%q}`, huge)
	}, "Bearer "+huge)
	p, c := start(t, Config{Endpoints: []Endpoint{endpointOf(f)}})
	if resp, _, err := get(t, c, f.Addr, "manifests/1"); err != nil || resp.StatusCode == http.StatusOK || len(p.Err().Error()) > 1000 {
		t.Errorf("%v %v %v", resp, err, p.Err())
	}
}
