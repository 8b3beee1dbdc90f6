package stats

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vishvananda/netlink"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/proc"
)

// The tests run as root of a user namespace of their own, as the server does:
// entering a network namespace asks for it.
const inside = "SUBPOD_STATS_TEST_INSIDE"

func TestMain(m *testing.M) {
	if os.Getenv(inside) != "" {
		os.Exit(m.Run())
	}
	c := exec.Command("/proc/self/exe", os.Args[1:]...)
	c.Env = append(os.Environ(), inside+"=1")
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	c.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS | syscall.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
		Pdeathsig:   syscall.SIGKILL,
	}
	var exit *exec.ExitError
	switch err := c.Run(); {
	case errors.As(err, &exit):
		os.Exit(exit.ExitCode())
	case err != nil:
		fmt.Fprintf(os.Stderr, "enter a user namespace: %v\n", err)
		os.Exit(1)
	}
}

// startContainer runs a script as PID 1 of new namespaces and waits for the line
// "ready" from it.
func startContainer(t *testing.T, id, script string) Container {
	t.Helper()
	c := exec.Command("sh", "-c", script)
	c.Stderr = os.Stderr
	// No Pdeathsig: it fires when the starting thread ends, and readNetworks
	// ends threads.
	c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWNET}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Process.Kill(); _ = c.Wait() })
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Fatalf("script said %q, %v", line, err)
	}
	init, err := proc.Identify(c.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	return Container{Init: init, Attributes: &runtimeapi.ContainerAttributes{
		Id: id, Metadata: &runtimeapi.ContainerMetadata{Name: "name-of-" + id},
	}}
}

const mib = 1 << 20

// TestWithoutCgroup measures real processes from /proc alone.
func TestWithoutCgroup(t *testing.T) {
	// tail keeps all of a file without newlines in memory; the loop burns at
	// least a quarter of a second in a child that is then waited for.
	// head has ended before it is ready, and is no process any more.
	busy := startContainer(t, "busy", `
		sh -c 'i=0; while [ $i -lt 400000 ]; do i=$((i+1)); done'
		exec 3>&1
		(head -c 40000000 /dev/zero; echo ready >&3; exec sleep 1000) | tail &
		wait`)
	idle := startContainer(t, "idle", "echo ready; exec sleep 1000")
	first := New(Options{})
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if first.Containers(t.Context(), []Container{busy})[0].Memory.RssBytes.Value >= 36*mib { // tail has it all
			break
		}
	}
	c := New(Options{})
	got := c.Containers(t.Context(), []Container{busy, idle})
	b, i := got[0], got[1]
	if b.Attributes != busy.Attributes || i.Attributes != idle.Attributes {
		t.Error("attributes were not handed on as they are")
	}
	if age := time.Since(time.Unix(0, b.Cpu.Timestamp)); age < 0 || age > time.Minute {
		t.Errorf("timestamp is %s old", age)
	}
	if v := b.Cpu.UsageCoreNanoSeconds.Value; v < 2e8 || v > 6e10 {
		t.Errorf("busy container used %d ns of CPU", v)
	}
	if v := i.Cpu.UsageCoreNanoSeconds.Value; v > 1e9 {
		t.Errorf("idle container used %d ns of CPU", v)
	}
	if b.Cpu.UsageNanoCores != nil {
		t.Error("a rate from one sample")
	}
	if v := b.Memory.RssBytes.Value; v < 35*mib || v > 200*mib {
		t.Errorf("busy container has %d bytes of RSS", v)
	}
	if v := i.Memory.RssBytes.Value; v > 8*mib || v == 0 {
		t.Errorf("idle container has %d bytes of RSS", v)
	}
	if b.Memory.UsageBytes.Value < b.Memory.RssBytes.Value || b.Memory.WorkingSetBytes.Value > b.Memory.UsageBytes.Value {
		t.Errorf("memory does not add up: %v", b.Memory)
	}
	if v := b.Memory.PageFaults.Value; v < 5000 { // 40 MB in pages of 4 KiB
		t.Errorf("busy container had %d page faults", v)
	}
	if b.Memory.AvailableBytes != nil || b.Swap != nil || b.Io != nil || b.WritableLayer != nil {
		t.Errorf("numbers that nothing tells: %v", b)
	}

	pod := Pod{Attributes: &runtimeapi.PodSandboxAttributes{Id: "pod"}, Containers: []Container{busy, idle}}
	// An exec is no descendant of init, but in its mount namespace.
	nsenter := exec.Command("nsenter", "-t", fmt.Sprint(idle.Init.PID), "-m", "sleep", "1000")
	before := c.Pods(t.Context(), []Pod{pod})[0].Linux
	if err := nsenter.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = nsenter.Process.Kill(); _ = nsenter.Wait() }()
	want := before.Process.ProcessCount.Value + 1
	var after *runtimeapi.LinuxPodSandboxStats
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		after = c.Pods(t.Context(), []Pod{pod})[0].Linux
		if after.Process.ProcessCount.Value == want || time.Now().After(deadline) {
			break
		}
	}
	if n := after.Process.ProcessCount.Value; n != want {
		t.Errorf("with an exec there are %d processes, not %d", n, want)
	}
	// busy: sh, the left side (sh or sleep), tail; idle: sleep.
	if n := before.Process.ProcessCount.Value; n < 4 || n > 5 {
		t.Errorf("the pod has %d processes", n)
	}
	if len(after.Containers) != 2 || after.Cpu.UsageCoreNanoSeconds.Value < b.Cpu.UsageCoreNanoSeconds.Value ||
		after.Memory.RssBytes.Value < b.Memory.RssBytes.Value+i.Memory.RssBytes.Value {
		t.Errorf("the pod's sums are too small: %v", after)
	}
	if after.Network != nil {
		t.Errorf("network of a pod on the node's: %v", after.Network)
	}
}

// TestStoppedContainer: what does not run uses nothing that could be told.
func TestStoppedContainer(t *testing.T) {
	ct := startContainer(t, "x", "echo ready; exec sleep 1000")
	reused := ct
	reused.Init.StartTime++ // the PID is another's now
	for name, gone := range map[string]Container{"reused PID": reused, "never ran": {Attributes: ct.Attributes}} {
		s := New(Options{}).Containers(t.Context(), []Container{gone})[0]
		if s.Cpu != nil || s.Memory != nil || s.Attributes.Id != "x" {
			t.Errorf("%s: %v", name, s)
		}
	}
	p := New(Options{}).Pods(t.Context(), []Pod{{Attributes: &runtimeapi.PodSandboxAttributes{Id: "p"}, Containers: []Container{reused}}})[0].Linux
	if p.Cpu.Timestamp == 0 || p.Cpu.UsageCoreNanoSeconds.Value != 0 || p.Process.ProcessCount.Value != 0 {
		t.Errorf("pod without a running container: %v", p)
	}
}

// addVeth gives the container an interface, whose other end is ours.
func addVeth(t *testing.T, name string, ct Container) *netlink.Veth {
	t.Helper()
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "host-" + name}, PeerName: name, PeerNamespace: netlink.NsPid(ct.Init.PID)}
	if err := netlink.LinkAdd(veth); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = netlink.LinkDel(veth) })
	return veth
}

// mainNetNS is the network namespace of the main thread.
func mainNetNS(t *testing.T) string {
	t.Helper()
	link, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	return link
}

func TestNetwork(t *testing.T) {
	own := mainNetNS(t)
	ct := startContainer(t, "c", "echo ready; exec sleep 1000")
	for _, name := range []string{"eth0", "net1"} {
		if err := netlink.LinkSetUp(addVeth(t, name, ct)); err != nil {
			t.Fatal(err)
		}
	}
	ns := fmt.Sprintf("/proc/%d/ns/net", ct.Init.PID)
	pods := []Pod{
		{Attributes: &runtimeapi.PodSandboxAttributes{Id: "gone"}, NetNS: "/no/such/file"},
		{Attributes: &runtimeapi.PodSandboxAttributes{Id: "p"}, NetNS: ns},
		{Attributes: &runtimeapi.PodSandboxAttributes{Id: "q"}, NetNS: ns, Interface: "net1"},
	}
	c := New(Options{Log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))})
	got := c.Pods(t.Context(), pods)
	if got[0].Linux.Network != nil {
		t.Errorf("a namespace that is not there: %v", got[0].Linux.Network)
	}
	n := got[1].Linux.Network
	if n == nil || got[2].Linux.Network == nil {
		t.Fatalf("got %v and %v", n, got[2].Linux.Network)
	}
	names := func(n *runtimeapi.NetworkUsage) string {
		var all []string
		for _, i := range n.Interfaces {
			all = append(all, i.Name)
		}
		slices.Sort(all)
		return strings.Join(all, " ")
	}
	// A list that is there also where there is but one interface: lo stands in it.
	if n.DefaultInterface.GetName() != "eth0" || names(n) != "lo net1" || n.Timestamp <= 0 {
		t.Fatalf("got %v", n)
	}
	if n := got[2].Linux.Network; n.DefaultInterface.GetName() != "net1" || names(n) != "eth0 lo" {
		t.Errorf("got %v", n)
	}
	// Up on both ends, IPv6 sends by itself.
	up := exec.Command("nsenter", "-t", fmt.Sprint(ct.Init.PID), "-n", "sh", "-c", "ip link set eth0 up || ifconfig eth0 up")
	if out, err := up.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		now := c.Pods(t.Context(), pods[1:2])[0].Linux.Network
		d := now.GetDefaultInterface()
		if d == nil {
			t.Fatalf("the default interface is gone: %v", now)
		}
		if d.TxBytes.Value > 0 && d.RxBytes.Value > 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("no traffic is counted: %v", d)
		}
	}
	// The test's own threads are where they were, the main one too: it could not end,
	// and would keep the pod's namespace.
	for range 500 {
		readNetworks(pods[1:2])
	}
	if now := mainNetNS(t); now != own {
		t.Errorf("the main thread is in %s, not %s", now, own)
	}
	if _, err := netlink.LinkByName("host-eth0"); err != nil {
		t.Errorf("a thread is in the wrong network namespace: %v", err)
	}
}

// writeCgroup makes a directory with the files that a cgroup with all
// controllers has.
func writeCgroup(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

var cgroupFiles = map[string]string{
	"cpu.stat":            "usage_usec 5000001\nuser_usec 3000000\nsystem_usec 2000001\nnr_periods 10\nnr_throttled 4\nthrottled_usec 2500000\n",
	"cpu.pressure":        "some avg10=1.50 avg60=0.50 avg300=0.10 total=7000000\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=3\n",
	"memory.current":      "1000000\n",
	"memory.max":          "5000000\n",
	"memory.peak":         "2000000\n",
	"memory.swap.current": "4096\n",
	"memory.swap.max":     "10000\n",
	"memory.stat":         "anon 300000\nfile 600000\nkernel 1234\nfile_mapped 777\ninactive_file 200000\nswapcached 5000\npgfault 900\npgmajfault 100\n",
	"memory.pressure":     "some avg10=0.00 avg60=2.00 avg300=0.00 total=6\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
	"memory.events":       "low 0\noom 2\noom_kill 1\n",
	"pids.current":        "7\n",
	"pids.max":            "max\n",
	"io.stat":             "8:0 rbytes=10 wbytes=20 rios=1 wios=2\n",
	"io.pressure":         "some avg10=0.00 avg60=0.00 avg300=0.00 total=5\nfull avg10=0.00 avg60=0.00 avg300=9.25 total=4\n",
	"cgroup.procs":        "1\n2\n",
	"child/cgroup.procs":  "3\n",
}

func TestFromCgroup(t *testing.T) {
	calls := 0
	c := New(Options{Mountpoint: "/", RootfsUsage: func(_ context.Context, id string) (Usage, error) {
		if calls++; id != "c" {
			return Usage{}, errors.New("unknown container")
		}
		return Usage{Bytes: 11, Inodes: 12}, nil
	}})
	ct := Container{Attributes: &runtimeapi.ContainerAttributes{Id: "c"}, Cgroup: writeCgroup(t, cgroupFiles)}
	s := c.Containers(t.Context(), []Container{ct})[0]
	at := s.Cpu.Timestamp
	u := func(v uint64) *runtimeapi.UInt64Value { return &runtimeapi.UInt64Value{Value: v} }
	want := &runtimeapi.ContainerStats{
		Attributes: ct.Attributes,
		Cpu: &runtimeapi.CpuUsage{Timestamp: at, UsageCoreNanoSeconds: u(5000001000), Psi: &runtimeapi.PsiStats{
			Some: &runtimeapi.PsiData{Total: 7000000000, Avg10: 1.5, Avg60: 0.5, Avg300: 0.1}, Full: &runtimeapi.PsiData{Total: 3000}}},
		Memory: &runtimeapi.MemoryUsage{Timestamp: at, WorkingSetBytes: u(800000), AvailableBytes: u(4200000), UsageBytes: u(1000000),
			RssBytes: u(305000), PageFaults: u(800), MajorPageFaults: u(100), Psi: &runtimeapi.PsiStats{
				Some: &runtimeapi.PsiData{Total: 6000, Avg60: 2}, Full: &runtimeapi.PsiData{}}},
		Swap: &runtimeapi.SwapUsage{Timestamp: at, SwapUsageBytes: u(4096), SwapAvailableBytes: u(5904)},
		Io: &runtimeapi.IoUsage{Timestamp: at, Psi: &runtimeapi.PsiStats{
			Some: &runtimeapi.PsiData{Total: 5000}, Full: &runtimeapi.PsiData{Total: 4000, Avg300: 9.25}}},
		WritableLayer: &runtimeapi.FilesystemUsage{Timestamp: s.WritableLayer.GetTimestamp(), FsId: &runtimeapi.FilesystemIdentifier{Mountpoint: "/"},
			UsedBytes: u(11), InodesUsed: u(12)},
	}
	if at <= 0 || s.WritableLayer.GetTimestamp() <= 0 {
		t.Errorf("timestamps: %v", s)
	}
	if !reflect.DeepEqual(s, want) {
		t.Errorf("got  %v\nwant %v", s, want)
	}
	pod := Pod{Attributes: &runtimeapi.PodSandboxAttributes{Id: "p"}, Cgroup: ct.Cgroup, Containers: []Container{ct}}
	linux := c.Pods(t.Context(), []Pod{pod})[0].Linux
	if linux.Process.ProcessCount.Value != 3 || linux.Cpu.UsageCoreNanoSeconds.Value != 5000001000 || linux.Io == nil ||
		linux.Memory.WorkingSetBytes.Value != 800000 || linux.Containers[0].WritableLayer.UsedBytes.Value != 11 {
		t.Errorf("pod: %v", linux)
	}
	if calls != 1 {
		t.Errorf("the writable layer was measured %d times in a moment", calls)
	}
	c.Forget("c", "p", "c")
	c.Containers(t.Context(), []Container{ct})
	if calls != 2 {
		t.Errorf("after Forget it was measured %d times", calls)
	}
	// Without the memory controller, and no process to fall back on.
	files := map[string]string{"cpu.stat": "usage_usec 1\n", "cgroup.procs": ""}
	s = c.Containers(t.Context(), []Container{{Attributes: ct.Attributes, Cgroup: writeCgroup(t, files)}})[0]
	if s.Memory != nil || s.Swap != nil || s.Io != nil || s.Cpu == nil {
		t.Errorf("without controllers: %v", s)
	}
}

// TestMixed: a cgroup without the memory controller, as where cgroups are
// hybrid, takes memory from /proc.
func TestMixed(t *testing.T) {
	ct := startContainer(t, "c", "echo ready; exec sleep 1000")
	ct.Cgroup = writeCgroup(t, map[string]string{"cpu.stat": "usage_usec 123456\n", "cgroup.procs": "1\n"})
	s := New(Options{}).Containers(t.Context(), []Container{ct})[0]
	if s.Cpu.UsageCoreNanoSeconds.Value != 123456000 || s.Memory.GetRssBytes().GetValue() == 0 || s.Swap != nil {
		t.Errorf("got %v", s)
	}
}

func TestRatesAndCounters(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r rate
		if v := r.update(time.Now(), 1e9); v != nil {
			t.Errorf("first sample: %v", v)
		}
		time.Sleep(minWindow / 2)
		if v := r.update(time.Now(), 2e9); v != nil {
			t.Errorf("window too short: %v", v)
		}
		time.Sleep(1500 * time.Millisecond)
		if v := r.update(time.Now(), 2e9); v.GetValue() != 5e8 { // 1 s of CPU in 2 s
			t.Errorf("got %v", v)
		}
		time.Sleep(minWindow / 2)
		if v := r.update(time.Now(), 9e9); v.GetValue() != 5e8 {
			t.Errorf("within the window: %v", v)
		}
		if v := r.update(time.Now(), 1); v != nil { // another container with the ID, or a bug
			t.Errorf("falling: %v", v)
		}
	})
	var k counter
	for i, step := range [][2]uint64{{10, 10}, {15, 15}, {5, 15}, {7, 17}, {0, 17}, {20, 37}} {
		if got := k.update(step[0]); got != step[1] {
			t.Errorf("step %d: got %d, want %d", i, got, step[1])
		}
	}
}

func TestMetrics(t *testing.T) {
	keys := map[string]int{}
	for _, d := range Descriptors() {
		if _, twice := keys[d.Name]; twice || d.Help == "" {
			t.Errorf("%s: described twice, or without help", d.Name)
		}
		keys[d.Name] = len(d.LabelKeys)
	}
	c := New(Options{Mountpoint: "/", RootfsUsage: func(context.Context, string) (Usage, error) { return Usage{11, 12}, nil }})
	ct := Container{Attributes: &runtimeapi.ContainerAttributes{Id: "c", Metadata: &runtimeapi.ContainerMetadata{Name: "app"}},
		Cgroup: writeCgroup(t, cgroupFiles), Image: "img", StartedAt: time.Unix(1700000000, 5),
		Resources: &runtimeapi.LinuxContainerResources{CpuPeriod: 100000, CpuQuota: -1, MemoryLimitInBytes: 5000000}}
	run := startContainer(t, "run", "echo ready; exec sleep 1000")
	addVeth(t, "eth0", run)
	pod := Pod{Attributes: &runtimeapi.PodSandboxAttributes{Id: "p", Metadata: &runtimeapi.PodSandboxMetadata{Name: "pod", Namespace: "ns"}},
		NetNS: fmt.Sprintf("/proc/%d/ns/net", run.Init.PID), Containers: []Container{ct, run}}
	got := c.Metrics(t.Context(), []Pod{pod})[0]
	if got.PodSandboxId != "p" || len(got.ContainerMetrics) != 2 || got.ContainerMetrics[0].ContainerId != "c" {
		t.Fatalf("got %v", got)
	}
	text := map[string]string{}
	used := map[string]bool{}
	for i, ms := range [][]*runtimeapi.Metric{got.Metrics, got.ContainerMetrics[0].Metrics, got.ContainerMetrics[1].Metrics} {
		for _, m := range ms {
			used[m.Name] = true
			if n, ok := keys[m.Name]; !ok || n != len(m.LabelValues) {
				t.Errorf("%s has %d labels, described are %d", m.Name, len(m.LabelValues), n)
			}
			at := fmt.Sprintf("%d %s{%s}", i, m.Name, strings.Join(m.LabelValues, ","))
			if _, twice := text[at]; twice {
				t.Errorf("%s comes twice", at)
			}
			text[at] = fmt.Sprint(m.Value.Value, " ", m.MetricType)
		}
	}
	for name := range keys {
		if !used[name] && name != "container_threads_max" { // pids.max is "max"
			t.Errorf("%s is described but never comes", name)
		}
	}
	for at, want := range map[string]string{
		"1 container_cpu_usage_seconds_total{/p/c,c,img,app,pod,ns,total}":              "5 COUNTER",
		"1 container_cpu_cfs_throttled_seconds_total{/p/c,c,img,app,pod,ns}":            "2 COUNTER",
		"1 container_memory_working_set_bytes{/p/c,c,img,app,pod,ns}":                   "800000 GAUGE",
		"1 container_memory_failures_total{/p/c,c,img,app,pod,ns,pgmajfault,container}": "100 COUNTER",
		"1 container_start_time_seconds{/p/c,c,img,app,pod,ns}":                         "1700000000 GAUGE",
		"1 container_fs_usage_bytes{/p/c,c,img,app,pod,ns,/}":                           "11 GAUGE",
		"1 container_spec_cpu_quota{/p/c,c,img,app,pod,ns}":                             "0 GAUGE",
		"1 container_pressure_cpu_waiting_seconds_total{/p/c,c,img,app,pod,ns}":         "7 COUNTER",
		"1 container_oom_events_total{/p/c,c,img,app,pod,ns}":                           "1 COUNTER",
		"0 container_network_receive_bytes_total{/p,,,,pod,ns,eth0}":                    "0 COUNTER",
		"2 container_processes{/p/run,run,,name-of-run,pod,ns}":                         "1 GAUGE",
	} {
		if text[at] != want {
			t.Errorf("%s is %q, want %q", at, text[at], want)
		}
	}
	for _, absent := range []string{"2 container_oom_events_total{/p/run,run,,name-of-run,pod,ns}", "2 container_memory_cache{/p/run,run,,name-of-run,pod,ns}"} {
		if v, ok := text[absent]; ok {
			t.Errorf("%s is %s although nothing tells it", absent, v)
		}
	}
}

// BenchmarkContainers is one ListContainerStats from /proc of one container
// among all processes of the machine; -benchtime=1x says what a pass costs.
func BenchmarkContainers(b *testing.B) {
	self, err := proc.Identify(os.Getpid())
	if err != nil {
		b.Fatal(err)
	}
	c := New(Options{})
	ct := []Container{{Attributes: &runtimeapi.ContainerAttributes{Id: "c"}, Init: self}}
	for b.Loop() {
		c.Containers(b.Context(), ct)
	}
}

func FuzzParseNetDev(f *testing.F) {
	f.Add("eth0: 1 2 3\n")
	f.Add("a:" + strings.Repeat(" 18446744073709551616", 16))
	f.Fuzz(func(t *testing.T, dev string) {
		for _, i := range parseNetDev(dev) {
			if i.name == "lo" {
				t.Error("the loopback")
			}
		}
	})
}
