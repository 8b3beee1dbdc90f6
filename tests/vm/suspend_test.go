package vm

import (
	"context"
	"fmt"
	"testing"
)

// TestSuspend: the machine sleeps, and its clock wakes it. Containers, an open exec and a
// log follower go on where they were: nothing is started again, and no line is lost.
func TestSuspend(t *testing.T) {
	start(t, "")
	in(t, subpod+" pull -q busybox")
	t.Cleanup(func() { _, _ = machine.Run(context.Background(), User, "rm -f nap.*") })
	in(t, fmt.Sprintf("%s run -d -q --name nap busybox sh -c '%s'", subpod, ticker("line")))
	defer in(t, subpod+" rm -f -t 0 nap")
	in(t, fmt.Sprintf(`setsid %[1]s logs -f nap >nap.log 2>nap.err </dev/null &
		setsid sh -c '(i=0; while :; do echo tick $i; i=$((i+1)); sleep 1; done) | %[1]s exec -i nap cat' >nap.exec 2>nap.err </dev/null &
		for f in nap.log nap.exec; do for i in $(seq 60); do [ -s $f ] && break; sleep 1; done; [ -s $f ] || exit 1; done`, subpod))
	before := keepers(t) + pgrep(t, "subpod-server") + " " + inits(t, tickerName) + " " + property(t, "NRestarts")
	written := in(t, "wc -l <nap.log; wc -l <nap.exec")

	// The kernel's count of how often it has slept. The clock of the machine is the host's.
	const slept = "cat /sys/power/suspend_stats/success"
	count := as(t, "root", slept)
	as(t, "root", "rtcwake -m mem -s 30")
	if now := as(t, "root", slept); now == count {
		t.Fatalf("the machine has not slept: %s", as(t, "root", "dmesg | tail -n 20"))
	}

	in(t, `set -- `+written+`
		for i in $(seq 120); do [ $(wc -l <nap.log) -gt $(($1+3)) ] && [ $(wc -l <nap.exec) -gt $(($2+3)) ] && exit; sleep 1; done
		wc -l nap.log nap.exec >&2; cat nap.err >&2; exit 1`)
	for _, command := range []string{"cat nap.log", "cat nap.exec", subpod + " logs nap"} {
		whole(t, command)
	}
	after := keepers(t) + pgrep(t, "subpod-server") + " " + inits(t, tickerName) + " " + property(t, "NRestarts")
	if after != before {
		t.Errorf("processes before the sleep: %s, after it: %s", before, after)
	}
	if out := in(t, subpod+" exec nap echo awake; "+subpod+" run --rm busybox echo new"); out != "awake\nnew" {
		t.Errorf("after the sleep: %q", out)
	}
}
