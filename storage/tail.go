package storage

import (
	"bytes"
	"strings"
	"sync"
	"unicode"
)

// firstLines shortens what a program has printed when it panicked.
func firstLines(said string) string {
	said = strings.Map(func(r rune) rune {
		if r == '\n' || unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, strings.ToValidUTF8(said, " "))
	lines := strings.SplitN(strings.TrimSpace(said), "\n", 4)
	return strings.Join(lines[:min(len(lines), 3)], "; ")
}

// tail keeps the beginning and the end of what is written to it.
type tail struct {
	mu          sync.Mutex
	first, last bytes.Buffer
}

const tailSize = 4 << 10

// Write implements io.Writer.
func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := min(len(p), tailSize-t.first.Len())
	t.first.Write(p[:n])
	t.last.Write(p[n:])
	if over := t.last.Len() - tailSize; over > 0 {
		t.last.Next(over)
	}
	return len(p), nil
}

// String returns what was kept.
func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.first.String() + t.last.String()
}
