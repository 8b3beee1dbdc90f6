package bench

import (
	"bufio"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// traceArg makes the test binary read what 'perf script' prints of a run of TestBench, and
// print when each step of the call named by its argument is reached: see trace.sh.
const traceArg = "-trace-table"

// traceEvent is one line: an event of a process.
type traceEvent struct {
	at          float64 // seconds
	comm, event string
	text        string
}

var traceLine = regexp.MustCompile(`^\s*(.+?)\s+\d+\s+\[\d+\]\s+([\d.]+):\s+(\w+:\w+):\s*(.*)`)

// traceSteps are the steps of CreateContainer, in the order in which they are reached: the
// first such event after the call's begin.
var traceSteps = []struct {
	what        string
	comm, event string
	text        string
	follows     bool // what comes later counts for the steps after it
}{
	{what: "the root file system is mounted", comm: "subpod-server", event: "sys_enter_mount"},
	{what: "conmon is started", comm: "conmon", event: "sched_process_exec", follows: true},
	{what: "conmon goes into the background", comm: "conmon", event: "sched_process_fork", follows: true},
	{what: "crun is started", comm: "crun", event: "sched_process_exec", follows: true},
	{what: "crun forks the container's init", comm: "crun", event: "sched_process_fork", follows: true},
	{what: "init has its mounts (pivot_root)", comm: "crun", event: "sys_enter_pivot_root", follows: true},
	{what: "crun ends", comm: "crun", event: "sched_process_exit", text: "group_dead=true"},
}

func traceMain(args []string) error {
	call := args[0]
	number := slices.Index(marked, call)
	if number < 0 {
		return fmt.Errorf("%q is not one of %v", call, marked)
	}
	var reached = make([][]float64, len(traceSteps))
	var whole []float64
	var span []traceEvent // since the call has begun
	inside := false
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		m := traceLine.FindStringSubmatch(lines.Text())
		if m == nil {
			continue
		}
		at, err := strconv.ParseFloat(m[2], 64)
		if err != nil {
			return err
		}
		e := traceEvent{at, m[1], m[3], m[4]}
		if strings.HasSuffix(e.event, ":sys_enter_getpriority") {
			switch {
			case strings.HasSuffix(e.text, fmt.Sprintf("who: 0x%08x", markBase+2*number+begins)):
				span, inside = nil, true
			case inside && strings.HasSuffix(e.text, fmt.Sprintf("who: 0x%08x", markBase+2*number+ends)):
				whole = append(whole, 1000*(e.at-span[0].at))
				note(reached, span)
				inside = false
			}
		}
		if inside {
			span = append(span, e)
		}
	}
	if len(whole) == 0 {
		return fmt.Errorf("no call of %s in the trace", call)
	}
	fmt.Printf("%s, %d calls: milliseconds after its begin, median and least\n", call, len(whole))
	for i, step := range traceSteps {
		if len(reached[i]) > 0 {
			fmt.Printf("  %6.2f %6.2f  %s (in %d)\n", middle(reached[i]), slices.Min(reached[i]), step.what, len(reached[i]))
		}
	}
	fmt.Printf("  %6.2f %6.2f  the answer\n", middle(whole), slices.Min(whole))
	return lines.Err()
}

// note adds when the steps were reached in one call. Those of conmon and crun follow each
// other: others on the machine run these, too.
func note(reached [][]float64, span []traceEvent) {
	from := 0
	for i, step := range traceSteps {
		for j := from; j < len(span); j++ {
			e := span[j]
			if e.comm != step.comm || !strings.HasSuffix(e.event, ":"+step.event) || !strings.Contains(e.text, step.text) {
				continue
			}
			reached[i] = append(reached[i], 1000*(e.at-span[0].at))
			if step.follows {
				from = j + 1
			}
			break
		}
	}
}

func middle(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}
