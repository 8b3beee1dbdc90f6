package storage

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
)

// TestPushStaysTLS: a registry that speaks TLS names an address of plain HTTP, for the
// upload or as its server of tokens, as one behind a proxy does that is set up wrongly. The
// credentials are not sent there.
func TestPushStaysTLS(t *testing.T) {
	var told atomic.Int32
	plain := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		told.Add(1)
		t.Logf("plain: %s %s, with credentials: %v", r.Method, r.URL, r.Header.Get("Authorization") != "")
		w.WriteHeader(http.StatusAccepted)
	}))
	defer plain.Close()
	challenge := `Basic realm="x"`
	registry := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Header.Get("Authorization") == "":
			w.Header().Set("WWW-Authenticate", challenge)
			w.WriteHeader(http.StatusUnauthorized)
		case r.Method == http.MethodPost:
			w.Header().Set("Location", plain.URL+"/v2/")
			w.WriteHeader(http.StatusAccepted)
		case r.Method == http.MethodHead:
			w.WriteHeader(http.StatusNotFound)
		}
	}))
	defer registry.Close()
	host := strings.TrimPrefix(registry.URL, "https://")
	o := testOptions(t, t.TempDir(), DriverFuse)
	writeFile(t, o.RegistriesConf, "[[registry]]\nlocation = \""+host+"\"\ninsecure = true\n")
	writeFile(t, o.AuthFile, fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, host, base64.StdEncoding.EncodeToString([]byte("me:secret"))))
	s := openStore(t, o)
	loadInto(t, s, "example.com/out:v1", sample(t, "out"))
	for _, c := range []struct{ what, challenge string }{{"upload", challenge}, {"tokens", `Bearer realm="` + plain.URL + `/token",service="s"`}} {
		challenge = c.challenge // the last one is the login's, too
		if _, err := s.Images.Push(t.Context(), "example.com/out:v1", host+"/out:v1"); err == nil || !strings.Contains(err.Error(), "plain HTTP") || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: push: %v", c.what, err)
		}
	}
	if _, err := s.Images.Login(t.Context(), host, "me", "secret"); err == nil || !strings.Contains(err.Error(), "plain HTTP") {
		t.Errorf("login: %v", err)
	}
	if n := told.Load(); n > 0 {
		t.Errorf("%d requests went out without TLS", n)
	}
}

// TestKeepTLS: a registry that does not speak TLS is asked without it.
func TestKeepTLS(t *testing.T) {
	for _, c := range []struct {
		urls string
		last bool // whether the last is allowed
	}{
		{"https://r/v2/ http://r/v2/ http://r/v2/app/blobs/uploads/ http://other/upload", true},
		{"https://r/v2/ https://r/v2/app/blobs/uploads/ http://r/v2/app/blobs/uploads/1", false},
		{"https://r/v2/ https://token/ http://r/v2/", false},
		{"https://r/v2/ https://r/v2/app/blobs/uploads/ https://other/upload", true},
		{"http://r/v2/ http://token/ https://other/upload", true},
	} {
		allow := keepTLS()
		urls := strings.Fields(c.urls)
		for i, text := range urls {
			u, err := url.Parse(text)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := allow(u); (err == nil) != (i < len(urls)-1 || c.last) {
				t.Errorf("%s: %s: %v", c.urls, text, err)
			}
		}
	}
}
