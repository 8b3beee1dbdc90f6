package node

import (
	"bytes"
	"sync"
)

const (
	logKept   = 16 << 10 // of a daemon's output, at its end
	raceKept  = 32 << 10 // from the first report of the race detector on
	raceStart = "WARNING: DATA RACE"
)

// log keeps the end of a daemon's output, and the first reports of the race detector
// in it: programs built with -race write them to standard error.
type log struct {
	mu    sync.Mutex
	buf   []byte
	races []byte
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	before := len(l.buf)
	l.buf = append(l.buf, p...)
	if len(l.races) > 0 {
		l.races = append(l.races, p[:min(len(p), raceKept-len(l.races))]...)
	} else if at := bytes.Index(l.buf[max(0, before-len(raceStart)):], []byte(raceStart)); at >= 0 {
		l.races = bytes.Clone(l.buf[max(0, before-len(raceStart))+at:])
		l.races = l.races[:min(len(l.races), raceKept)]
	}
	if over := len(l.buf) - logKept; over > 0 {
		l.buf = l.buf[over:]
	}
	return len(p), nil
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.buf)
}

// raceReport returns the first reports of the race detector; "" when there is none.
func (l *log) raceReport() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.races)
}

// checkRaces fails the test for data races that the race detector saw in the node's
// programs (SUBPOD_BIN=bin/race).
func (n *Node) checkRaces() {
	n.t.Helper()
	for _, log := range *n.logs {
		if report := log.raceReport(); report != "" {
			n.t.Errorf("the race detector reports:\n%s", report)
		}
	}
}
