package storage

import (
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
)

// TestRepeatedPassword: a registry that repeats a request's credentials in its error has them
// in none of ours, nor their beginning, where what is long of an answer has been cut off.
func TestRepeatedPassword(t *testing.T) {
	const password, token = `hunter-"two"-secret-of-many-words`, "token-of-an-hour.secret-of-an-hour"
	var challenge string
	var repeat func(*http.Request) string
	registry := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/token":
			fmt.Fprintf(w, `{"token":%q}`, token)
		case r.Header.Get("Authorization") == "":
			w.Header().Set("WWW-Authenticate", strings.ReplaceAll(challenge, "HOST", r.Host))
			w.WriteHeader(http.StatusUnauthorized)
		case r.Method == http.MethodHead: // a push asks so for what is there
			w.WriteHeader(http.StatusNotFound)
		default:
			w.WriteHeader(http.StatusForbidden)
			io.WriteString(w, repeat(r))
		}
	}))
	defer registry.Close()
	host := strings.TrimPrefix(registry.URL, "https://")
	encoded := base64.StdEncoding.EncodeToString([]byte("me:" + password))
	o := testOptions(t, t.TempDir(), DriverFuse)
	writeFile(t, o.RegistriesConf, "[[registry]]\nlocation = \""+host+"\"\ninsecure = true\n")
	writeFile(t, o.AuthFile, fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, host, encoded))
	s := openStore(t, o)
	loadInto(t, s, "example.com/out:v1", sample(t, "out"))
	header := func(r *http.Request) string { return "you sent " + r.Header.Get("Authorization") }
	decoded := func(r *http.Request) string { _, p, _ := r.BasicAuth(); return "you sent " + p }
	inJSON := func(text string) string { return fmt.Sprintf(`{"errors":[{"code":"DENIED","message":%q}]}`, text) }
	const basic = `Basic realm="x"`
	for name, c := range map[string]struct {
		challenge string
		repeat    func(*http.Request) string
	}{
		"header":   {basic, header},
		"password": {basic, decoded},
		"in JSON":  {basic, func(r *http.Request) string { return inJSON(decoded(r)) }},
		"in a URL": {basic, func(r *http.Request) string { return url.QueryEscape(decoded(r)) }},
		"token":    {`Bearer realm="https://HOST/token"`, func(r *http.Request) string { return inJSON(header(r)) }},
	} {
		challenge, repeat = c.challenge, c.repeat
		_, push := s.Images.Push(t.Context(), "example.com/out:v1", host+"/out:v1")
		_, login := s.Images.Login(t.Context(), host, "me", password)
		_, pull := s.Images.Pull(t.Context(), PullRequest{Ref: host + "/out:v1"})
		for what, err := range map[string]error{"push": push, "login": login, "pull": pull} {
			if err == nil || strings.Contains(err.Error(), "hunter") || strings.Contains(err.Error(), "secret") || strings.Contains(err.Error(), encoded[:16]) {
				t.Errorf("%s, %s: %v", name, what, err)
			}
			if !errors.Is(err, ErrUnauthorized) {
				t.Errorf("%s, %s: not refused access: %v", name, what, err)
			}
		}
	}
}

// TestPasswordOfOurWords: a password that is in the words of our own errors does not hide why a
// registry is not reached.
func TestPasswordOfOurWords(t *testing.T) {
	s := openStore(t, testOptions(t, t.TempDir(), DriverVFS))
	_, err := s.Images.Login(t.Context(), "127.0.0.1:1", "me", "registry")
	if err == nil || !strings.Contains(err.Error(), "connection refused") {
		t.Error(err)
	}
}
