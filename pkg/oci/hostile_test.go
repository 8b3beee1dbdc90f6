package oci

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/subpod/subpod/pkg/monitor/wire"
)

// written returns how many bytes a process has written.
func written(t *testing.T, pid int) (n int64) {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", pid))
	check(t, err)
	_, after, ok := strings.Cut(string(b), "wchar: ")
	if !ok {
		t.Fatalf("/proc/%d/io has %q", pid, b)
	}
	_, err = fmt.Sscan(after, &n)
	check(t, err)
	return n
}

// TestMonitorHostileWriters: more containers than the monitor has slots for batches write
// without end, in long writes, in lines and in lines of one byte. The line of a neighbour
// is in its log before each of them has had more than a few batches of theirs read. That is
// counted in bytes: how fast the machine is makes no difference.
func TestMonitorHostileWriters(t *testing.T) {
	e := executorWith(t, MonitorNode)
	const batch, most, lines, each = 64 << 10, 32, 41, 7
	var hostile []*box
	for range each {
		for _, args := range [][]string{{"/bin/cat", "/dev/zero"}, {"/bin/yes"}, sh("while :; do echo; done")} {
			s := createSpec(t, e, container{args: args})
			s.LogPath = "/dev/null"
			c, err := createAs(context.Background(), e, s)
			check(t, err)
			t.Cleanup(func() { check(t, e.Delete(context.Background(), s.ID, c)) })
			hostile = append(hostile, (&box{Executor: e, t: t, id: s.ID, ctr: c}).start())
		}
	}
	neighbour := create(t, e, container{stdin: true, args: sh("while read x; do echo $x; done")}).start()
	a := neighbour.attach(true)
	var counts []int64
	for i := range lines {
		before := make([]int64, len(hostile))
		for i, h := range hostile {
			before[i] = written(t, h.ctr.Init.PID)
		}
		_, err := io.WriteString(a.in, "line\n")
		check(t, err)
		eventually(t, "the neighbour's line is in the log", func() bool { return len(neighbour.logLines()) > i })
		var worst int64
		for i, h := range hostile {
			worst = max(worst, (written(t, h.ctr.Init.PID)-before[i])/batch)
		}
		counts = append(counts, worst)
	}
	slices.Sort(counts)
	t.Logf("batches of the fastest writer meanwhile: %v", counts)
	if median := counts[lines/2]; median > most {
		t.Errorf("the fastest writer had %d batches read for one line of the neighbour", median)
	}
	for _, h := range hostile { // none has been left out either
		before := written(t, h.ctr.Init.PID)
		eventually(t, "a hostile writer goes on", func() bool { return written(t, h.ctr.Init.PID) > before })
	}
	_, err := nodeMonitor{e}.ask(context.Background(), wire.Request{Op: wire.OpHello})
	check(t, err)
}
