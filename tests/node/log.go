package node

import (
	"bytes"
	"slices"
	"strings"
	"sync"
)

const (
	logKept   = 64 << 10 // of a daemon's output, at its end
	racesKept = 4
	raceKept  = 16 << 10 // of one report of the race detector
	raceStart = "WARNING: DATA RACE"
	raceEnd   = "=================="
)

// knownRaces are reports that are no fault of ours, by words that all stand in them.
var knownRaces = [][]string{
	// An assertion reads without the mutex what another reader sets to the same value.
	{"storage/pkg/lockfile.(*LockFile).AssertLocked()", "storage/pkg/lockfile.(*LockFile).lock()"},
}

// log keeps the end of a daemon's output, and the reports of the race detector in it:
// programs built with -race write them to standard error.
type log struct {
	mu     sync.Mutex
	buf    []byte
	line   []byte // the last one, without its end so far
	report *strings.Builder
	races  []string
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.buf = append(l.buf, p...)
	if over := len(l.buf) - logKept; over > 0 {
		l.buf = l.buf[over:]
	}
	l.line = append(l.line, p...)
	for {
		end := bytes.IndexByte(l.line, '\n')
		if end < 0 {
			return len(p), nil
		}
		l.readLine(string(l.line[:end]))
		l.line = l.line[end+1:]
	}
}

// readLine collects reports of the race detector.
func (l *log) readLine(line string) {
	switch {
	case line == raceStart:
		l.report = &strings.Builder{}
	case l.report == nil:
	case line == raceEnd:
		if report := l.report.String(); !known(report, true) && len(l.races) < racesKept {
			l.races = append(l.races, report)
		}
		l.report = nil
	case l.report.Len() < raceKept:
		l.report.WriteString(line + "\n")
	}
}

// known reports whether a race is one of knownRaces. A report that was cut short has at
// least one of the words then.
func known(report string, complete bool) bool {
	has := func(word string) bool { return strings.Contains(report, word) }
	lacks := func(word string) bool { return !has(word) }
	return slices.ContainsFunc(knownRaces, func(words []string) bool {
		if complete {
			return !slices.ContainsFunc(words, lacks)
		}
		return slices.ContainsFunc(words, has)
	})
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.buf)
}

// raceReports returns the first reports of the race detector that are not known.
func (l *log) raceReports() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.report != nil && !known(l.report.String(), false) { // killed while it wrote
		return append(slices.Clone(l.races), l.report.String())
	}
	return l.races
}

// checkRaces fails the test for data races that the race detector saw in the node's
// programs (SUBPOD_BIN=bin/race).
func (n *Node) checkRaces() {
	n.t.Helper()
	for _, log := range *n.logs {
		for _, report := range log.raceReports() {
			n.t.Errorf("data race:\n%s", report)
		}
	}
}
