package node

import (
	"strings"
	"testing"
)

// A report of the race detector is found in however many pieces it comes, and kept
// when much is written after it.
func TestLogKeepsRaceReports(t *testing.T) {
	const report = "==================\nWARNING: DATA RACE\nWrite at 0x1 by goroutine 7:\n"
	for size := 1; size <= len(report); size++ {
		l := &log{}
		l.Write([]byte(strings.Repeat("before\n", 5000)))
		for rest := report; rest != ""; {
			piece := rest[:min(size, len(rest))]
			rest = rest[len(piece):]
			l.Write([]byte(piece))
		}
		l.Write([]byte(strings.Repeat("after\n", 5000)))
		got := l.raceReport()
		if !strings.HasPrefix(got, raceStart) || !strings.Contains(got, "goroutine 7") || len(got) > raceKept {
			t.Fatalf("in pieces of %d: %d bytes: %.80q", size, len(got), got)
		}
	}
	l := &log{}
	l.Write([]byte(strings.Repeat("nothing\n", 5000)))
	if got := l.raceReport(); got != "" || len(l.String()) > logKept {
		t.Errorf("no report: %q, %d bytes kept", got, len(l.String()))
	}
}
