package stream

import (
	"crypto/rand"
	"encoding/base64"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
)

// Kinds of sessions, as they stand in the URL.
const (
	kindExec        = "exec"
	kindAttach      = "attach"
	kindPortForward = "portforward"
)

// maxWaiting bounds the requests that wait to be opened, and maxWaitingBytes what they
// hold, so that a client that asks for URLs and never opens them costs a bounded amount of
// memory.
const (
	maxWaiting      = 1000
	maxWaitingBytes = 64 << 20
)

// tokens are the requests that wait to be opened. A token is good once, for its
// own kind of session, and until ttl has passed. Knowing one is the whole
// authorisation to run a command, hence 128 random bits.
type tokens struct {
	ttl time.Duration

	mu      sync.Mutex
	waiting map[string]pending
	bytes   int // of waiting
}

type pending struct {
	kind    string
	request proto.Message
	bytes   int
	expires time.Time
}

// full reports whether a request of n bytes has no room.
func (t *tokens) full(n int) bool {
	return len(t.waiting) >= maxWaiting || t.bytes+n > maxWaitingBytes
}

func (t *tokens) remove(token string) {
	t.bytes -= t.waiting[token].bytes
	delete(t.waiting, token)
}

// add returns a new token for request. ErrBusy when too many wait.
func (t *tokens) add(kind string, request proto.Message) (string, error) {
	size := proto.Size(request)
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	if t.full(size) {
		for k, p := range t.waiting {
			if now.After(p.expires) {
				t.remove(k)
			}
		}
	}
	if t.full(size) {
		return "", ErrBusy
	}
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	token := base64.RawURLEncoding.EncodeToString(b[:])
	t.waiting[token] = pending{kind, request, size, now.Add(t.ttl)}
	t.bytes += size
	return token, nil
}

// take uses a token up and returns its request.
func (t *tokens) take(kind, token string) (proto.Message, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	p, ok := t.waiting[token]
	if !ok || p.kind != kind {
		return nil, false
	}
	t.remove(token)
	if time.Now().After(p.expires) {
		return nil, false
	}
	return p.request, true
}
