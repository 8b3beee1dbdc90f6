package logging_test

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/subpod/subpod/pkg/logging"
)

// gate is a log's reader that takes a line when it is told to.
type gate struct{ begun, take chan string }

func newGate() gate { return gate{make(chan string), make(chan string)} }

// Write implements io.Writer.
func (g gate) Write(text []byte) (int, error) {
	g.begun <- string(bytes.Clone(text))
	<-g.take
	return len(text), nil
}

// TestLinesLost: the line about the lost ones has the attributes of the others, and what
// comes while it is written has its place after it, or is counted in the next: also a line
// that is larger than what may wait.
func TestLinesLost(t *testing.T) {
	for name, later := range map[string]string{"small": "later", "huge": strings.Repeat("y", 2<<20)} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { linesLost(t, later) })
		})
	}
}

func linesLost(t *testing.T, later string) {
	g := newGate()
	log := logging.New(g, logging.Options{Level: slog.LevelError}, "process", "p")
	const each, lines = 100_000, 12
	for range lines {
		log.Error(strings.Repeat("x", each))
	}
	for n := range 10 {
		if line := <-g.begun; len(line) < each {
			t.Fatalf("line %d: %q", n, line)
		}
		g.take <- ""
	}
	lost := <-g.begun
	if !strings.Contains(lost, " lines=2") || !strings.Contains(lost, " process=p") {
		t.Errorf("line %q", lost)
	}
	log.Error(later)
	g.take <- ""
	if line := <-g.begun; !strings.Contains(line, later[:5]) && !strings.Contains(line, " lines=1") {
		t.Errorf("line %.200q", line)
	}
	g.take <- ""
	synctest.Wait()
	go log.Error("after it")
	if line := <-g.begun; !strings.Contains(line, "after it") {
		t.Errorf("line %.200q", line)
	}
	g.take <- ""
}
