package fetch

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// Sentinels for errors.Is.
var (
	// ErrUnauthorized means that the registry, or its token server, refused access.
	ErrUnauthorized = errors.New("access refused")
	// ErrNotFound means that the endpoint lacks what was asked for.
	ErrNotFound = errors.New("not found")
	// ErrUnavailable means that the endpoint can't be reached, or can't answer now.
	ErrUnavailable = errors.New("not available")
	// ErrNotRegistry means that what answered is no registry: a captive portal, say.
	ErrNotRegistry = errors.New("the answer is not a registry's")
)

var (
	errPlain  = errors.New("the local proxy is asked in plain HTTP")
	errSilent = errors.New("it sends nothing, or next to nothing")
	errRefuse = errors.New("the local proxy does not serve this")
)

// Error is what went wrong with one request.
type Error struct {
	What   string // "manifest v1", "blob sha256:…"
	Host   string
	Status int   // of the answer, 0 without one
	Tries  int   // how often it was tried
	Err    error // wraps a sentinel, or what the network said
}

// Error says what was asked for, where, and what happened.
func (e *Error) Error() string {
	tries := ""
	if e.Tries > 1 {
		tries = fmt.Sprintf(" (tried %d times)", e.Tries)
	}
	why := fmt.Sprint(e.Err)
	if len(why) > 1000 { // a certificate may have thousands of names
		why = strings.ToValidUTF8(why[:1000], "") + "…"
	}
	return fmt.Sprintf("get %.200s from %s%s: %s", e.What, e.Host, tries, why)
}

// Unwrap returns Err.
func (e *Error) Unwrap() error { return e.Err }

// statusError makes an error of an answer that is not the expected one. The answer's
// text goes into it: short, printable, and without what looks like a page. One that repeats
// the request's credentials, as some do to show what they were sent, is left out.
func statusError(resp *http.Response) error {
	hurry(resp)
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 4096))
	text := answerText(resp.Header.Get("Content-Type"), body)
	repeated := func(secret string) bool { return Repeats(string(body), secret) || Repeats(text, secret) }
	if slices.ContainsFunc(secrets(resp.Request), repeated) {
		text = ": its text is left out, it has the credentials in it"
	}
	switch code := resp.StatusCode; {
	case code == http.StatusUnauthorized, code == http.StatusForbidden:
		return fmt.Errorf("%w: %s%s", ErrUnauthorized, statusOf(resp), text)
	case code == http.StatusNotFound, code == http.StatusGone:
		return fmt.Errorf("%w: %s%s", ErrNotFound, statusOf(resp), text)
	case retryable(code), code >= 500:
		return fmt.Errorf("%w: %s%s", ErrUnavailable, statusOf(resp), text)
	}
	return fmt.Errorf("%w: %s%s", ErrNotRegistry, statusOf(resp), text)
}

// mostShown is how many bytes of the beginning of a secret make it one: what comes after them may
// have been cut off of a long answer.
const mostShown = 12

// Repeats reports whether a text has a secret in it, as it is, quoted or in the form of a URL, or
// the beginning of it.
func Repeats(text, secret string) bool {
	quoted := strconv.Quote(secret)
	forms := []string{secret, quoted[1 : len(quoted)-1], url.QueryEscape(secret), url.PathEscape(secret)}
	return secret != "" && slices.ContainsFunc(forms, func(form string) bool {
		return strings.Contains(text, form[:min(len(form), mostShown)])
	})
}

// secrets returns what a request has that no error may have.
func secrets(req *http.Request) []string {
	_, value, _ := strings.Cut(req.Header.Get("Authorization"), " ")
	_, password, _ := req.BasicAuth()
	out := []string{value, password}
	if req.GetBody == nil {
		return out
	}
	if body, err := req.GetBody(); err == nil {
		text, _ := io.ReadAll(body)
		if form, err := url.ParseQuery(string(text)); err == nil {
			out = append(out, form.Get("refresh_token"))
		}
	}
	return out
}

// statusOf returns the status of an answer, without the words that the server has for it.
func statusOf(resp *http.Response) string {
	return strings.TrimSpace(strconv.Itoa(resp.StatusCode) + " " + http.StatusText(resp.StatusCode))
}

// answerText returns the message of a registry's error, with a colon before it, or "".
func answerText(contentType string, body []byte) string {
	var list struct {
		Errors []struct {
			Code    string `json:"code"`
			Message string `json:"message"`
		} `json:"errors"`
		Details string `json:"details"`
	}
	text := ""
	switch err := json.Unmarshal(body, &list); {
	case err == nil && len(list.Errors) > 0:
		text = strings.Trim(strings.ToLower(strings.ReplaceAll(list.Errors[0].Code, "_", " "))+": "+list.Errors[0].Message, ": ")
	case err == nil:
		text = list.Details
	case strings.Contains(contentType, "html"), strings.HasPrefix(strings.TrimSpace(string(body)), "<"):
		return ""
	default:
		text = string(body)
	}
	text = strings.TrimSpace(strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, text))
	if len(text) > 200 {
		text = strings.ToValidUTF8(text[:200], "") + "…"
	}
	if text == "" {
		return ""
	}
	return ": " + text
}

// retryable reports whether the same request may get a better answer later.
func retryable(code int) bool {
	switch code {
	case http.StatusRequestTimeout, http.StatusTooManyRequests:
		return true
	case http.StatusNotImplemented, http.StatusHTTPVersionNotSupported, http.StatusNetworkAuthenticationRequired:
		return false
	}
	return code >= 500 // also what proxies in front of a registry made up: 520 to 527
}

// refusesRange reports whether a request with a range may get a better answer without: the
// blob's beginning came from the same place, and what stands in front of a registry may refuse
// a range by any code but those that say that the blob is gone.
func refusesRange(code int) bool {
	return code/100 == 4 && !retryable(code) && code != http.StatusNotFound && code != http.StatusGone
}

// transient reports whether a request that failed with err may succeed when it is
// sent again soon. One that found nobody, or the wrong one, does not.
func transient(err error) bool {
	var dns *net.DNSError
	var record tls.RecordHeaderError
	var cert *tls.CertificateVerificationError
	var host x509.HostnameError
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, errRefuse):
		return false
	case errors.As(err, &dns):
		return dns.IsTemporary && !dns.IsNotFound
	case errors.As(err, &record), errors.As(err, &cert), errors.As(err, &host):
		return false
	case errors.Is(err, ErrUnauthorized), errors.Is(err, ErrNotFound), errors.Is(err, ErrNotRegistry):
		return false
	}
	return !strings.Contains(err.Error(), "server gave HTTP response to HTTPS client")
}

// retryAfter returns how long an answer asks to wait, at most maxRetryAfter, or 0.
func retryAfter(h http.Header) time.Duration {
	v := h.Get("Retry-After")
	if v == "" {
		return 0
	}
	if d, err := time.ParseDuration(v + "s"); err == nil {
		return min(max(d, 0), maxRetryAfter)
	}
	if t, err := http.ParseTime(v); err == nil {
		return min(max(time.Until(t), 0), maxRetryAfter)
	}
	return 0
}

// maxRetryAfter is the longest wait that a registry may ask for.
const maxRetryAfter = 30 * time.Second
