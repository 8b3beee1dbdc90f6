package logging

import (
	"os"
	"slices"
	"sync"
	"time"
)

// queues are those of all logs of the process, which has one as a rule.
var queues allQueues

type allQueues struct {
	mu  sync.Mutex
	all []*queue
}

func (a *allQueues) add(q *queue) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.all = append(a.all, q)
}

func (a *allQueues) wait() {
	a.mu.Lock()
	all := slices.Clone(a.all)
	a.mu.Unlock()
	for _, q := range all {
		q.wait()
	}
}

// Exit ends the process as os.Exit does, once what was logged is written and, after it,
// last to standard error, or after endPatience. What was logged gets no time where its
// reader has stopped that long ago.
func Exit(code int, last string) {
	written := make(chan struct{})
	go func() {
		queues.wait()
		if last != "" {
			_, _ = os.Stderr.WriteString(last)
		}
		close(written)
	}()
	select {
	case <-written:
	case <-time.After(endPatience):
	}
	os.Exit(code)
}
