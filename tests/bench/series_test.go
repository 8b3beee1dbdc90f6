package bench

import (
	"fmt"
	"io"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// series has the durations of each call, by name.
type series map[string][]time.Duration

func (s series) add(name string, d time.Duration) { s[name] = append(s[name], d) }

func (s series) measure(name string, call func() error) error {
	mark(name, begins)
	begin := time.Now()
	err := call()
	s.add(name, time.Since(begin))
	mark(name, ends)
	return err
}

const (
	begins = 1
	ends   = 0
)

// mark tells trace.sh where a call begins and ends, by a system call that does nothing
// and that nobody else makes with such an argument.
func mark(name string, edge int) {
	if i := slices.Index(marked, name); i >= 0 {
		_, _ = unix.Getpriority(unix.PRIO_PROCESS, markBase+2*i+edge)
	}
}

// marked are the calls that trace.sh takes apart, in its numbers.
var marked = []string{runPod, create, start, execSync, stop, remove, stopPod, removePod, runTrue}

const markBase = 0x5b000000

// at returns the duration that the given part of all are not above.
func (s series) at(name string, part float64) time.Duration {
	sorted := slices.Sorted(slices.Values(s[name]))
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(len(sorted)-1, int(part*float64(len(sorted))))]
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// print writes the table, and what the floor is a part of.
func (s series) print(w io.Writer, floor series) {
	fmt.Fprintf(w, "  %-28s %8s %8s\n", "", "median", "p95")
	row := func(from series, name, label string) {
		fmt.Fprintf(w, "  %-28s %8.1f %8.1f\n", label, ms(from.at(name, .5)), ms(from.at(name, .95)))
	}
	for _, name := range []string{runPod, create, start, up, execSync, stop, remove, stopPod, removePod, whole} {
		row(s, name, name)
	}
	row(floor, floorRun, "floor: "+floorRun)
	row(floor, floorExec, "floor: "+floorExec)
	if median := floor.at(floorRun, .5); median > 0 {
		fmt.Fprintf(w, "  pod up / crun run: %.2f (goal: 1.50)\n", float64(s.at(up, .5))/float64(median))
	}
}
