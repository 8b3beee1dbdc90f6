package storage

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// TestRepeatedPassword: a registry that repeats a request's credentials in its error has them
// in none of ours.
func TestRepeatedPassword(t *testing.T) {
	repeat := func(r *http.Request) string { return r.Header.Get("Authorization") }
	registry := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") == "" {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		if r.Method == http.MethodHead { // a push asks so for what is there
			w.WriteHeader(http.StatusNotFound)
			return
		}
		w.WriteHeader(http.StatusForbidden)
		io.WriteString(w, "you sent "+repeat(r))
	}))
	defer registry.Close()
	host := strings.TrimPrefix(registry.URL, "https://")
	encoded := base64.StdEncoding.EncodeToString([]byte("me:secret"))
	o := testOptions(t, t.TempDir(), DriverFuse)
	writeFile(t, o.RegistriesConf, "[[registry]]\nlocation = \""+host+"\"\ninsecure = true\n")
	writeFile(t, o.AuthFile, fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, host, encoded))
	s := openStore(t, o)
	loadInto(t, s, "example.com/out:v1", sample(t, "out"))
	for _, f := range []func(*http.Request) string{repeat, func(r *http.Request) string { _, p, _ := r.BasicAuth(); return p }} {
		repeat = f
		_, push := s.Images.Push(t.Context(), "example.com/out:v1", host+"/out:v1")
		_, login := s.Images.Login(t.Context(), host, "me", "secret")
		_, pull := s.Images.Pull(t.Context(), PullRequest{Ref: host + "/out:v1"})
		for what, err := range map[string]error{"push": push, "login": login, "pull": pull} {
			if err == nil || strings.Contains(err.Error(), "secret") || strings.Contains(err.Error(), encoded) {
				t.Errorf("%s: %v", what, err)
			}
			if !errors.Is(err, ErrUnauthorized) {
				t.Errorf("%s: not refused access: %v", what, err)
			}
		}
	}
}
