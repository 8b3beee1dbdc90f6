package storage

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	fakes "github.com/subpod/subpod/tests/registry"
)

func isBlob(r *http.Request) bool     { return strings.Contains(r.URL.Path, "/blobs/") }
func isManifest(r *http.Request) bool { return strings.Contains(r.URL.Path, "/manifests/") }

// altered answers what f would, with a changed header.
func altered(f *fakes.Fake, w http.ResponseWriter, r *http.Request, change func(http.Header)) bool {
	f.Answer(headerWriter{w, change}, r)
	return true
}

type headerWriter struct {
	http.ResponseWriter
	change func(http.Header)
}

func (w headerWriter) WriteHeader(code int) {
	w.change(w.Header())
	w.ResponseWriter.WriteHeader(code)
}

func (w headerWriter) Write(p []byte) (int, error) {
	w.change(w.Header())
	return w.ResponseWriter.Write(p)
}

// TestOddRegistries: answers that are unusual, and good enough to pull by.
func TestOddRegistries(t *testing.T) {
	img := sample(t, "odd")
	for name, fault := range map[string]func(*fakes.Fake) func(http.ResponseWriter, *http.Request) bool{
		"no Content-Length": func(f *fakes.Fake) func(http.ResponseWriter, *http.Request) bool {
			return func(w http.ResponseWriter, r *http.Request) bool {
				return r.Method == http.MethodGet && altered(f, w, r, func(h http.Header) { h.Del("Content-Length") })
			}
		},
		"each connection closed": func(f *fakes.Fake) func(http.ResponseWriter, *http.Request) bool {
			return func(w http.ResponseWriter, r *http.Request) bool {
				return altered(f, w, r, func(h http.Header) { h.Set("Connection", "close") })
			}
		},
		"no digest header": func(f *fakes.Fake) func(http.ResponseWriter, *http.Request) bool {
			return func(w http.ResponseWriter, r *http.Request) bool {
				return altered(f, w, r, func(h http.Header) { h.Del("Docker-Content-Digest") })
			}
		},
		"a digest header of another algorithm": func(f *fakes.Fake) func(http.ResponseWriter, *http.Request) bool {
			return func(w http.ResponseWriter, r *http.Request) bool {
				return altered(f, w, r, func(h http.Header) { h.Set("Docker-Content-Digest", "sha512:"+strings.Repeat("0", 128)) })
			}
		},
		"rubbish as digest header": func(f *fakes.Fake) func(http.ResponseWriter, *http.Request) bool {
			return func(w http.ResponseWriter, r *http.Request) bool {
				return altered(f, w, r, func(h http.Header) { h.Set("Docker-Content-Digest", "x") })
			}
		},
		"blobs said to be gzip": func(f *fakes.Fake) func(http.ResponseWriter, *http.Request) bool {
			return func(w http.ResponseWriter, r *http.Request) bool {
				return isBlob(r) && altered(f, w, r, func(h http.Header) { h.Set("Content-Encoding", "gzip") })
			}
		},
		"a compressed manifest": func(*fakes.Fake) func(http.ResponseWriter, *http.Request) bool {
			return func(w http.ResponseWriter, r *http.Request) bool {
				if !isManifest(r) || !strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
					return false
				}
				var buf bytes.Buffer
				z := gzip.NewWriter(&buf)
				z.Write(img.manifest)
				z.Close()
				w.Header().Set("Content-Type", v1.MediaTypeImageManifest)
				w.Header().Set("Content-Encoding", "gzip")
				w.Write(buf.Bytes())
				return true
			}
		},
		"HEAD refused": func(*fakes.Fake) func(http.ResponseWriter, *http.Request) bool {
			return func(w http.ResponseWriter, r *http.Request) bool {
				if r.Method != http.MethodHead {
					return false
				}
				w.WriteHeader(http.StatusMethodNotAllowed)
				return true
			}
		},
		"an upgrade offered": func(f *fakes.Fake) func(http.ResponseWriter, *http.Request) bool {
			return func(w http.ResponseWriter, r *http.Request) bool {
				return altered(f, w, r, func(h http.Header) { h.Set("Upgrade", "h2c") })
			}
		},
		"manifest elsewhere": func(*fakes.Fake) func(http.ResponseWriter, *http.Request) bool {
			return func(w http.ResponseWriter, r *http.Request) bool {
				if !isManifest(r) || r.URL.RawQuery != "" {
					return false
				}
				http.Redirect(w, r, r.URL.Path+"?again=1", http.StatusTemporaryRedirect)
				return true
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := startBad(t, fakes.FakeOptions{}, img)
			f.SetFault(fault(f))
			s := badStore(t, f)
			pullRef(t, s, f.Addr+"/app:v1")
		})
	}
}

// TestRedirectsWithCredentials: blobs at another host, which refuses credentials, as
// object stores do.
func TestRedirectsWithCredentials(t *testing.T) {
	img := sample(t, "redirected")
	for _, code := range []int{http.StatusFound, http.StatusTemporaryRedirect, http.StatusPermanentRedirect} {
		t.Run(fmt.Sprint(code), func(t *testing.T) {
			store := startBad(t, fakes.FakeOptions{}, img)
			f := startBad(t, fakes.FakeOptions{}, img)
			want := "Basic " + base64.StdEncoding.EncodeToString([]byte("user:password"))
			f.SetFault(func(w http.ResponseWriter, r *http.Request) bool {
				if r.Header.Get("Authorization") != want {
					w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
					w.WriteHeader(http.StatusUnauthorized)
					return true
				}
				if isBlob(r) {
					// By another name: cookies and credentials go by it.
					http.Redirect(w, r, "http://"+strings.Replace(store.Addr, "127.0.0.1", "localhost", 1)+r.URL.Path+"?sig=a%2Fb", code)
					return true
				}
				return false
			})
			s := badStore(t, f)
			_, err := s.Images.Pull(context.Background(), PullRequest{Ref: f.Addr + "/app:v1", Auth: &Auth{Username: "user", Password: "password"}})
			if err != nil {
				t.Fatal(err)
			}
			if got := store.Credentials(); len(got) > 0 {
				t.Errorf("the store was sent %q", got)
			}
		})
	}
}

// TestBadRedirects: they end, soon, and say what is wrong.
func TestBadRedirects(t *testing.T) {
	img := sample(t, "redirects")
	for name, location := range map[string]func(*http.Request) string{
		"to itself":  func(r *http.Request) string { return r.URL.Path },
		"nowhere":    func(*http.Request) string { return "" },
		"to a file":  func(*http.Request) string { return "file:///etc/passwd" },
		"no address": func(*http.Request) string { return "http://%zz/" },
	} {
		t.Run(name, func(t *testing.T) {
			f := startBad(t, fakes.FakeOptions{}, img)
			f.SetFault(func(w http.ResponseWriter, r *http.Request) bool {
				if !isBlob(r) {
					return false
				}
				if l := location(r); l != "" {
					w.Header().Set("Location", l)
				}
				w.WriteHeader(http.StatusTemporaryRedirect)
				return true
			})
			s := badStore(t, f)
			err := within(t, "the pull", func() error {
				_, err := s.Images.Pull(context.Background(), PullRequest{Ref: f.Addr + "/app:v1"})
				return err
			})
			if err == nil {
				t.Error("it was pulled")
			}
			wantClean(t, s, 0)
		})
	}
}

// TestChallenges: what registries send for a token, and answers of token servers.
func TestChallenges(t *testing.T) {
	img := sample(t, "challenges")
	for name, c := range map[string]struct {
		challenges []string // REALM is the token server
		token      string
	}{
		"a service with spaces":       {[]string{`Bearer realm="REALM",service="Registry of Linux",scope="repository:app:pull"`}, ""},
		"a realm with a query":        {[]string{`Bearer realm="REALM?a=b&c=d",service="s"`}, ""},
		"quotes in a value":           {[]string{`Bearer realm="REALM",service="s \"x\"",error="in\\valid"`}, ""},
		"a comma at the end":          {[]string{`Bearer realm="REALM",service="s",`}, ""},
		"tabs and spaces":             {[]string{"Bearer   realm = \"REALM\" ,\tservice=\"s\""}, ""},
		"unknown parameters":          {[]string{`Bearer x-foo="1",realm="REALM",service="s"`}, ""},
		"an empty service":            {[]string{`Bearer realm="REALM",service=""`}, ""},
		"no service":                  {[]string{`Bearer realm="REALM"`}, ""},
		"three schemes":               {[]string{"NTLM", "Negotiate abc==", `Bearer realm="REALM",service="s"`}, ""},
		"two in one header":           {[]string{`Negotiate, Bearer realm="REALM",service="s"`}, ""},
		"capitals":                    {[]string{`BEARER Realm="REALM",Service="s"`}, ""},
		"a token that lives for ever": {[]string{`Bearer realm="REALM",service="s"`}, `{"token":"tok","expires_in":1000000000000}`},
		"a token that is over":        {[]string{`Bearer realm="REALM",service="s"`}, `{"token":"tok","expires_in":-5}`},
		"a fraction":                  {[]string{`Bearer realm="REALM",service="s"`}, `{"token":"tok","expires_in":300.0}`},
		"null":                        {[]string{`Bearer realm="REALM",service="s"`}, `{"token":"tok","access_token":null,"expires_in":null,"issued_at":null}`},
		"access_token only":           {[]string{`Bearer realm="REALM",service="s"`}, "\n {\"access_token\":\"tok\"}\n"},
	} {
		t.Run(name, func(t *testing.T) {
			f := startBad(t, fakes.FakeOptions{}, img)
			f.SetFault(func(w http.ResponseWriter, r *http.Request) bool {
				switch {
				case r.URL.Path == "/token":
					fmt.Fprint(w, cmp.Or(c.token, `{"token":"tok"}`))
				case r.Header.Get("Authorization") != "Bearer tok":
					for _, challenge := range c.challenges {
						w.Header().Add("WWW-Authenticate", strings.ReplaceAll(challenge, "REALM", "http://"+f.Addr+"/token"))
					}
					w.WriteHeader(http.StatusUnauthorized)
				default:
					return false
				}
				return true
			})
			pullRef(t, badStore(t, f), f.Addr+"/app:v1")
		})
	}
}

// TestOddRetryAfter: no value of Retry-After keeps a pull from its own time limit.
func TestOddRetryAfter(t *testing.T) {
	img := sample(t, "later")
	for i, value := range []string{"", "0", "-1", "1.5", "soon", "Thu, 01 Jan 1970 00:00:00 GMT", "Thursday, 01-Jan-70 00:00:00 GMT"} {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			f := startBad(t, fakes.FakeOptions{}, img)
			var asked atomic.Int32
			f.SetFault(func(w http.ResponseWriter, r *http.Request) bool {
				if !isBlob(r) || asked.Add(1) > 1 {
					return false
				}
				if value != "" {
					w.Header().Set("Retry-After", value)
				}
				w.WriteHeader(http.StatusTooManyRequests)
				return true
			})
			pullRef(t, badStore(t, f), f.Addr+"/app:v1")
		})
	}
	t.Run("never", func(t *testing.T) {
		f := startBad(t, fakes.FakeOptions{}, img)
		f.SetFault(func(w http.ResponseWriter, r *http.Request) bool {
			if isBlob(r) {
				w.Header().Set("Retry-After", "99999999999999999999")
				w.WriteHeader(http.StatusTooManyRequests)
			}
			return isBlob(r)
		})
		s := badStore(t, f)
		s.layers.opts.PullTimeout = 2 * time.Second
		err := within(t, "the pull", func() error {
			_, err := s.Images.Pull(context.Background(), PullRequest{Ref: f.Addr + "/app:v1"})
			return err
		})
		if err == nil {
			t.Error("it was pulled")
		}
	})
}

// TestBrokenCredentials: an auth.json that cannot be read is no fault of the image.
func TestBrokenCredentials(t *testing.T) {
	f := startBad(t, fakes.FakeOptions{}, sample(t, "credentials"))
	s := badStore(t, f)
	for name, text := range map[string]string{
		"no JSON":   `{`,
		"no base64": fmt.Sprintf(`{"auths":{%q:{"auth":"!!!"}}}`, f.Addr),
		"a number":  fmt.Sprintf(`{"auths":{%q:{"auth":1}}}`, f.Addr),
	} {
		writeFile(t, s.layers.opts.AuthFile, text)
		_, err := s.Images.Pull(context.Background(), PullRequest{Ref: f.Addr + "/app:v1"})
		if !errors.Is(err, ErrConfiguration) || errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "credentials for "+f.Addr) {
			t.Errorf("%s: %v", name, err)
		}
	}
	writeFile(t, s.layers.opts.AuthFile, `{}`)
	pullRef(t, s, f.Addr+"/app:v1")
}
