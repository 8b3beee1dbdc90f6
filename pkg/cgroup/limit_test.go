package cgroup

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// TestLimit writes a pod's limits as cgroup v2 wants them.
func TestLimit(t *testing.T) {
	p := Pod{Dir: t.TempDir()}
	want := map[string]string{
		"cpu.weight": "20", "cpu.max": "50000 100000", "memory.max": "1000", "memory.swap.max": "500", "pids.max": "9",
		"hugetlb.2MB.max": "4096", "cpuset.cpus": "0-1", "cpuset.mems": "0",
	}
	for name := range want {
		check(t, os.WriteFile(filepath.Join(p.Dir, name), nil, 0o600))
	}
	n := func(v int64) *int64 { return &v }
	shares, period := uint64(512), uint64(100000)
	r := &specs.LinuxResources{
		CPU:            &specs.LinuxCPU{Shares: &shares, Quota: n(50000), Period: &period, Cpus: "0-1", Mems: "0"},
		Memory:         &specs.LinuxMemory{Limit: n(1000), Swap: n(1500)},
		HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 4096}}, Unified: map[string]string{"pids.max": "9"},
	}
	check(t, p.Limit(r))
	for name, value := range want {
		if got, _ := os.ReadFile(filepath.Join(p.Dir, name)); string(got) != value {
			t.Errorf("%s is %q, want %q", name, got, value)
		}
	}
	check(t, os.Truncate(filepath.Join(p.Dir, "cpu.max"), 0))
	check(t, p.Limit(&specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: n(-1)}}))
	if got, _ := os.ReadFile(filepath.Join(p.Dir, "cpu.max")); string(got) != "max 100000" {
		t.Errorf("cpu.max without a quota is %q", got)
	}
	err := p.Limit(&specs.LinuxResources{Unified: map[string]string{"io.max": "8:0 wbps=1"}})
	if !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "io.max") {
		t.Errorf("a limit without its file: %v", err)
	}
	check(t, Pod{}.Limit(r))
	for shares, want := range map[uint64]uint64{0: 1, 2: 1, 1024: 39, 262144: 10000, 1 << 40: 10000} {
		if got := weight(shares); got != want {
			t.Errorf("weight of %d shares: %d, want %d", shares, got, want)
		}
	}
}
