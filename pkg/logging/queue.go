package logging

import (
	"bytes"
	"io"
	"sync"
	"time"
)

const (
	// readerPatience is how long a line waits for the log's reader to take it.
	readerPatience = 100 * time.Millisecond
	// endPatience is how long a process that ends waits for the log's reader.
	endPatience = time.Second
	// maxQueued bounds the lines, in bytes, that wait for a reader which has stopped.
	maxQueued = 1 << 20
)

// queue writes lines in order, and keeps who logs from waiting for a reader that has
// stopped: a pager, a terminal that is held, a journal that hangs. A line is written when
// Write returns, unless that takes longer than readerPatience: from then on, until all is
// written, lines wait in memory, and are lost when there are too many.
type queue struct {
	to io.Writer
	// lost makes the line that says how many were lost, and writes it to to.
	lost func(lines int)

	mu      sync.Mutex
	lines   []*line // that no write has begun of
	size    int     // of lines and of the one that is being written, in bytes
	dropped int     // after lines
	stuck   bool
	idle    chan struct{} // closed when all is written; nil without a drain
	begun   time.Time     // of the write that goes on
}

// line is written once done is closed.
type line struct {
	text []byte
	done chan struct{}
}

// Write implements io.Writer. It never fails: nobody could be told.
func (q *queue) Write(text []byte) (int, error) {
	l, stuck := q.add(text)
	if l == nil || stuck {
		return len(text), nil
	}
	patience := time.NewTimer(readerPatience)
	defer patience.Stop()
	select {
	case <-l.done:
	case <-patience.C:
		q.mu.Lock()
		q.stuck = q.idle != nil
		q.mu.Unlock()
	}
	return len(text), nil
}

// add puts a line at the end, and has it written; nil when there is no room.
func (q *queue) add(text []byte) (l *line, stuck bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.dropped > 0 || q.size > 0 && q.size+len(text) > maxQueued {
		q.dropped++
		return nil, true
	}
	l = &line{bytes.Clone(text), make(chan struct{})}
	q.lines = append(q.lines, l)
	q.size += len(text)
	if q.idle == nil {
		q.idle = make(chan struct{})
		q.begun = time.Now()
		go q.drain()
	}
	return l, q.stuck
}

// drain writes all lines that there are, and how many are missing after them. There is
// never a second one.
func (q *queue) drain() {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.lines) > 0 || q.dropped > 0 {
		q.begun = time.Now()
		if len(q.lines) == 0 {
			dropped := q.dropped
			q.dropped = 0
			q.unlocked(func() { q.lost(dropped) })
			continue
		}
		l := q.lines[0]
		q.lines[0] = nil
		q.lines = q.lines[1:]
		q.unlocked(func() { _, _ = q.to.Write(l.text) })
		close(l.done)
		q.size -= len(l.text)
	}
	close(q.idle)
	q.lines, q.stuck, q.idle = nil, false, nil
}

func (q *queue) unlocked(f func()) {
	q.mu.Unlock()
	defer q.mu.Lock()
	f()
}

// wait returns when all that was added is written, or endPatience after the beginning of
// the write that goes on: a reader that has long stopped gets no more time.
func (q *queue) wait() {
	q.mu.Lock()
	idle, patience := q.idle, endPatience-time.Since(q.begun)
	q.mu.Unlock()
	if idle == nil {
		return
	}
	select {
	case <-idle:
	case <-time.After(patience):
	}
}
