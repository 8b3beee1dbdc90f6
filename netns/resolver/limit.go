package resolver

import (
	"sync"
	"time"
)

// What one pod may ask for. More is not answered: nobody asks that much in earnest, and
// no pod is to keep the others waiting.
const (
	questionsPerSecond = 2000
	questionsAtOnce    = 4000
	forwardedAtOnce    = 128
	connectionsAtOnce  = 16
)

// limiter bounds what one pod asks, or all of them. The zero value is ready for use.
type limiter struct {
	mu          sync.Mutex
	left        float64
	last        time.Time
	forwarded   int
	connections int
}

// question reports whether the pod may ask one more question now.
func (l *limiter) question(now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.last.IsZero() {
		l.left = questionsAtOnce
	} else {
		l.left = min(l.left+now.Sub(l.last).Seconds()*questionsPerSecond, questionsAtOnce)
	}
	l.last = now
	if l.left < 1 {
		return false
	}
	l.left--
	return true
}

// take reports whether there may be one more of what n counts, up to most, and counts it.
func (l *limiter) take(n *int, most int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if *n >= most {
		return false
	}
	*n++
	return true
}

func (l *limiter) give(n *int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	*n--
}
