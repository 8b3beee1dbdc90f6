package oci

import (
	"os"
	"slices"
	"strings"
	"testing"
)

// TestLogPieces: a long line is in the log as pieces with the tag P and a last one with F,
// which together are the line. conmon's pieces have up to 8 KiB, as its reads come, ours 16
// as containerd's; the format of the CRI names no size.
func TestLogPieces(t *testing.T) { eachMonitor(t, testLogPieces) }

func testLogPieces(t *testing.T, e *Executor) {
	const length = 100_000
	b := create(t, e, container{args: sh("printf %0100000d 0; echo; echo short; printf 'no end'")}).start()
	b.wait()
	text, err := os.ReadFile(b.log)
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	line, longest := "", 0
	for piece := range strings.Lines(string(text)) {
		fields := strings.SplitN(strings.TrimSuffix(piece, "\n"), " ", 4)
		if len(fields) != 4 || fields[1] != "stdout" {
			t.Fatalf("%.80q is not in the format of the CRI", piece)
		}
		line, longest = line+fields[3], max(longest, len(fields[3]))
		if fields[2] == "F" {
			lines, line = append(lines, line), ""
		}
	}
	if want := []string{strings.Repeat("0", length), "short"}; len(lines) < 2 || !slices.Equal(lines[:2], want) {
		t.Errorf("%d lines, the first with %d bytes", len(lines), len(lines[0]))
	}
	if rest := strings.Join(lines[min(2, len(lines)):], "") + line; rest != "no end" {
		t.Errorf("the unfinished line is %q", rest)
	}
	want, exact := 8192, false
	if b.ctr.Monitor == MonitorNode {
		want, exact = 16384, true
	}
	if longest > want || exact && longest < want {
		t.Errorf("the longest piece has %d bytes, docs/containers.md says %d", longest, want)
	}
}
