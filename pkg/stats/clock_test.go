package stats

import (
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestCPUClock: what a container without a cgroup has used is measured by the clocks of its
// processes, and does not fall when they end.
func TestCPUClock(t *testing.T) {
	ct := startContainer(t, "c", `
		i=0; while [ $i -lt 2000 ]; do i=$((i+1)); done
		echo ready
		j=0; while [ $j -lt 30 ]; do sh -c 'i=0; while [ $i -lt 3000 ]; do i=$((i+1)); done'; j=$((j+1)); done
		sleep 1000`)
	c := New(Options{})
	measure := func() uint64 {
		return c.Containers(t.Context(), []Container{ct})[0].GetCpu().GetUsageCoreNanoSeconds().GetValue()
	}
	var fine bool
	last, still := measure(), 0
	for deadline := time.Now().Add(10 * time.Second); still < 50 && time.Now().Before(deadline); time.Sleep(2 * time.Millisecond) {
		now := measure()
		if now < last {
			t.Fatalf("CPU time fell from %d to %d ns", last, now)
		}
		fine = fine || now%(tickUsec*1000) != 0
		if still++; now > last {
			still = 0
		}
		last = now
	}
	if last == 0 || !fine {
		t.Errorf("CPU time %d ns: it is in whole ticks", last)
	}
}

// TestCoarseCounter: what has gone from a clock to the ticks of a parent is counted once.
func TestCoarseCounter(t *testing.T) {
	var k counter
	const ms = 1_000_000
	for i, step := range []struct{ v, want uint64 }{
		{7 * ms, 7 * ms}, {0, 7 * ms}, {6 * ms, 7 * ms}, {10 * ms, 10 * ms}, // a child of 7 ms, then one of 6
		{40 * ms, 40 * ms}, {15 * ms, 40 * ms}, {20 * ms, 45 * ms}, // 25 ms that nobody has waited for
	} {
		if got := k.updateCoarse(step.v, 20*ms); got != step.want {
			t.Errorf("step %d: %d, want %d", i, got, step.want)
		}
	}
}

// TestMemoryPressure: pressure is told without the memory controller, too.
func TestMemoryPressure(t *testing.T) {
	files := map[string]string{}
	for name, text := range cgroupFiles {
		if !strings.HasPrefix(name, "memory.") || name == "memory.pressure" {
			files[name] = text
		}
	}
	ct := startContainer(t, "c", "echo ready; exec sleep 1000")
	ct.Cgroup = writeCgroup(t, files)
	pod := Pod{Attributes: &runtimeapi.PodSandboxAttributes{Id: "p"}, Cgroup: ct.Cgroup, Containers: []Container{ct}}
	linux := New(Options{}).Pods(t.Context(), []Pod{pod})[0].Linux
	for what, m := range map[string]*runtimeapi.MemoryUsage{"container": linux.Containers[0].Memory, "pod": linux.Memory} {
		if m.GetUsageBytes().GetValue() == 0 || m.GetPsi().GetSome().GetTotal() != 6000 || m.GetPsi().GetFull() == nil {
			t.Errorf("memory of the %s: %v", what, m)
		}
	}
}

// TestHandlesAndDevices: the metrics of open files, sockets, limits that were hit, and
// block devices.
func TestHandlesAndDevices(t *testing.T) {
	files := map[string]string{}
	for name, text := range cgroupFiles {
		files[name] = text
	}
	files["memory.events"] = "low 0\nmax 17\noom 2\noom_kill 1\n"
	files["memory.peak"] = "4000000\n"
	files["io.stat"] = "259:9999 rbytes=10 wbytes=20 rios=1 wios=2\n7:9999 rbytes=1 wbytes=2 rios=1 wios=1\n"
	ct := startContainer(t, "c", "exec 5</dev/null 6</dev/null; echo ready; exec sleep 1000")
	ct.Cgroup = writeCgroup(t, files)
	c := New(Options{})
	pods := []Pod{{Attributes: &runtimeapi.PodSandboxAttributes{Id: "p"}, Containers: []Container{ct}}}
	got := c.Metrics(t.Context(), pods)[0].ContainerMetrics[0].Metrics
	find := func(name string, labels ...string) uint64 {
		for _, m := range got {
			if m.Name == name && slices.Equal(m.LabelValues[len(baseLabels):], labels) {
				return m.Value.GetValue()
			}
		}
		t.Errorf("no metric %s %v", name, labels)
		return 0
	}
	if n := find("container_file_descriptors"); n < 5 || n > 20 {
		t.Errorf("%d open files", n)
	}
	if n := find("container_sockets"); n > 5 {
		t.Errorf("%d sockets", n)
	}
	if n := find("container_memory_failcnt"); n != 17 {
		t.Errorf("the limit of memory was hit %d times", n)
	}
	if n := find("container_memory_max_usage_bytes"); n != 4000000 {
		t.Errorf("most memory: %d", n)
	}
	if r, w := find("container_blkio_device_usage_total", "", "259", "9999", "Read"), find("container_blkio_device_usage_total", "", "7", "9999", "Write"); r != 10 || w != 2 {
		t.Errorf("block devices: %d read, %d written", r, w)
	}
	var names []string
	for _, d := range Descriptors() {
		names = append(names, d.Name)
	}
	for _, m := range got {
		if !slices.Contains(names, m.Name) {
			t.Errorf("%s is not described", m.Name)
		}
	}
}

// TestSockets counts sockets among the open files, and counts no more than it may.
func TestSockets(t *testing.T) {
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", t.TempDir()+"/s")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	links := 10000
	files, sockets, known := openFiles(os.Getpid(), &links)
	if sockets == 0 || files <= sockets || !known {
		t.Errorf("%d open files, %d sockets, known: %v", files, sockets, known)
	}
	if links != 10000-int(files) {
		t.Errorf("%d links are left of 10000 after %d files", links, files)
	}
	none := 1
	if files, _, known := openFiles(os.Getpid(), &none); known || files == 0 {
		t.Errorf("with one link to look at: %d files, sockets known: %v", files, known)
	}
}
