package logging

import (
	"crypto/sha256"
	"log/slog"
	"strings"
	"sync"
)

// maxSaid bounds what Once remembers; beyond it everything is said once more.
const maxSaid = 1000

// Once keeps a log short that would say the same of every container: what was said once is
// said at level debug from then on. The zero value has said nothing.
type Once struct {
	mu   sync.Mutex
	said map[[sha256.Size]byte]bool // digests: clients choose how long a sentence is
}

// Level returns slog.LevelWarn for what is said for the first time, then slog.LevelDebug.
func (o *Once) Level(what string) slog.Level {
	key := sha256.Sum256([]byte(what))
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.said[key] {
		return slog.LevelDebug
	}
	if o.said == nil || len(o.said) >= maxSaid {
		o.said = map[[sha256.Size]byte]bool{}
	}
	o.said[key] = true
	return slog.LevelWarn
}

// Sentence is Level of a sentence in which figures and signs make no difference.
func (o *Once) Sentence(s string) slog.Level {
	return o.Level(strings.Map(func(r rune) rune {
		if r >= '0' && r <= '9' || r == '-' {
			return -1
		}
		return r
	}, s))
}
