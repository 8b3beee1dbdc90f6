package node

import (
	"slices"
	"strings"
	"testing"
)

func raceReport(words ...string) string {
	return raceEnd + "\n" + raceStart + "\n" + strings.Join(words, "\n") + "\n" + raceEnd + "\n"
}

// Reports of the race detector are found in however many pieces they come, and kept
// when much is written after them. Known ones are left out.
func TestLogKeepsRaceReports(t *testing.T) {
	text := raceReport(knownRaces[0]...) + "a line of the log\n" + raceReport("Write at 0x1 by goroutine 7:") + raceReport("Read at 0x2")
	for size := 1; size <= len(text); size++ {
		l := &log{}
		l.Write([]byte(strings.Repeat("before\n", 5000)))
		for rest := text; rest != ""; {
			piece := rest[:min(size, len(rest))]
			rest = rest[len(piece):]
			l.Write([]byte(piece))
		}
		l.Write([]byte(strings.Repeat("after\n", 5000)))
		if got, want := l.raceReports(), []string{"Write at 0x1 by goroutine 7:\n", "Read at 0x2\n"}; !slices.Equal(got, want) {
			t.Fatalf("in pieces of %d: %q, want %q", size, got, want)
		}
		if len(l.String()) > logKept {
			t.Fatalf("%d bytes are kept", len(l.String()))
		}
	}
	l := &log{}
	l.Write([]byte(raceStart + "\nRead at 0x3\n")) // killed in the middle
	if got := l.raceReports(); len(got) != 1 || got[0] != "Read at 0x3\n" {
		t.Errorf("a report that was cut short: %q", got)
	}
	l = &log{}
	l.Write([]byte(raceStart + "\n" + knownRaces[0][0] + "\n"))
	if got := l.raceReports(); len(got) != 0 {
		t.Errorf("a known report that was cut short: %q", got)
	}
}
