package stream

import (
	"crypto/rand"
	"encoding/base64"
	"sync"
	"time"
)

// Kinds of sessions, as they stand in the URL.
const (
	kindExec        = "exec"
	kindAttach      = "attach"
	kindPortForward = "portforward"
)

// maxWaiting bounds the requests that wait to be opened, so that a client that
// asks for URLs and never opens them costs a bounded amount of memory.
const maxWaiting = 1000

// tokens are the requests that wait to be opened. A token is good once, for its
// own kind of session, and until ttl has passed. Knowing one is the whole
// authorisation to run a command, hence 128 random bits.
type tokens struct {
	ttl time.Duration

	mu      sync.Mutex
	waiting map[string]pending
}

type pending struct {
	kind    string
	request any
	expires time.Time
}

// add returns a new token for request. ErrBusy when too many wait.
func (t *tokens) add(kind string, request any) (string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	if len(t.waiting) >= maxWaiting {
		for k, p := range t.waiting {
			if now.After(p.expires) {
				delete(t.waiting, k)
			}
		}
	}
	if len(t.waiting) >= maxWaiting {
		return "", ErrBusy
	}
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	token := base64.RawURLEncoding.EncodeToString(b[:])
	t.waiting[token] = pending{kind, request, now.Add(t.ttl)}
	return token, nil
}

// take uses a token up and returns its request.
func (t *tokens) take(kind, token string) (any, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p, ok := t.waiting[token]
	if !ok || p.kind != kind {
		return nil, false
	}
	delete(t.waiting, token)
	if time.Now().After(p.expires) {
		return nil, false
	}
	return p.request, true
}
