package bench

import (
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/subpod/subpod/tests/leak"
	"github.com/subpod/subpod/tests/node"

	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// Ways of packets.
const (
	wayLoopback = "loopback of the host"
	wayPods     = "pod to pod"
	wayOut      = "pod to host"
	wayIn       = "host to pod, published port"
	wayPort     = 5201 // in a pod
)

// wayTook is what was measured on one way.
type wayTook struct {
	Gbits, Back   float64       // to the server, and from it
	Connect, Trip time.Duration // medians
}

// wayBench measures ways by what netBench has.
type wayBench struct {
	t    *testing.T
	n    *node.Node // its environment; nil is this process's
	took map[string]wayTook
}

// both measures throughput in both directions and latency, from a place to one that
// listens on serve and that is reached by address and port.
func (w wayBench) both(name string, from, to place, address string, serve, port int) {
	w.t.Helper()
	n := w.n
	if n == nil {
		n = node.Prepare(w.t, node.Options{})
	}
	b := netBench{t: w.t, n: n, out: &strings.Builder{}}
	throughput := func(more ...string) float64 {
		stop := b.background(to.argv("iperf3", "--server", "--one-off", "--port", strconv.Itoa(serve))...)
		defer stop()
		return b.iperf(from, address, port, more...)
	}
	took := wayTook{Gbits: throughput(), Back: throughput("--reverse")}
	latency := b.latency(from, to, address, serve, port)
	took.Connect, took.Trip = latency[0], latency[1]
	w.took[name] = took
}

// idleSeconds is how long idleCPU looks.
const idleSeconds = 10

// idleCPU is the part of a core that a process and all below it take.
func idleCPU(pid int) float64 {
	before := processorTime(pid, false)
	time.Sleep(idleSeconds * time.Second)
	return (processorTime(pid, false) - before).Seconds() / idleSeconds
}

// processorTime is what a process and all below it have taken, and with ended also those of
// their children that they have waited for.
func processorTime(pid int, ended bool) (sum time.Duration) {
	const tick = 10 * time.Millisecond // the kernel's, on all machines of today
	for _, p := range append(leak.Descendants(pid), leak.Process{PID: pid}) {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.PID))
		if err != nil {
			continue
		}
		_, rest, _ := strings.Cut(string(data), ") ")
		fields := strings.Fields(rest)
		for i := 11; i < len(fields) && (i < 13 || ended && i < 15); i++ { // user, system, and those of children
			ticks, _ := strconv.Atoi(fields[i])
			sum += time.Duration(ticks) * tick
		}
	}
	return sum
}

func kernel() string {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return "?"
	}
	release, _, _ := strings.Cut(unix.ByteSliceToString(name.Release[:]), "-")
	return release
}

func cores() int { return runtime.NumCPU() }

// processor is its model's name.
func processor() string {
	data, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(data)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH
}
