package cgroup

import (
	"fmt"
	"strconv"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// defaultPeriod is the kernel's period of CPU quotas, in microseconds.
const defaultPeriod = 100_000

// Limit sets limits of the pod's own cgroup, for all of its containers together. What r does
// not set stays. Idempotent; nothing happens when cgroups are disabled. The controllers of
// what is set must be delegated.
func (p Pod) Limit(r *specs.LinuxResources) error {
	if p.Dir == "" || r == nil {
		return nil
	}
	for _, f := range limitFiles(r) {
		if err := writeFile(p.Dir, f.name, f.value); err != nil {
			return fmt.Errorf("set the pod's limit %s to %q: %w", f.name, f.value, err)
		}
	}
	return nil
}

type controlFile struct{ name, value string }

// limitFiles translates limits into files of cgroup v2, in the order in which they are
// written.
func limitFiles(r *specs.LinuxResources) []controlFile {
	var out []controlFile
	set := func(name, value string) { out = append(out, controlFile{name, value}) }
	if c := r.CPU; c != nil {
		if c.Shares != nil {
			set("cpu.weight", strconv.FormatUint(weight(*c.Shares), 10))
		}
		if c.Quota != nil {
			period := uint64(defaultPeriod)
			if c.Period != nil {
				period = *c.Period
			}
			set("cpu.max", bound(*c.Quota)+" "+strconv.FormatUint(period, 10))
		}
		if c.Cpus != "" {
			set("cpuset.cpus", c.Cpus)
		}
		if c.Mems != "" {
			set("cpuset.mems", c.Mems)
		}
	}
	if m := r.Memory; m != nil {
		if m.Limit != nil {
			set("memory.max", bound(*m.Limit))
		}
		if m.Swap != nil { // memory and swap together, which cgroup v2 counts apart
			swap := *m.Swap
			if m.Limit != nil && *m.Limit > 0 && swap > 0 {
				swap -= *m.Limit
			}
			set("memory.swap.max", bound(swap))
		}
	}
	for _, h := range r.HugepageLimits {
		set("hugetlb."+h.Pagesize+".max", strconv.FormatUint(h.Limit, 10))
	}
	for name, value := range r.Unified {
		set(name, value)
	}
	return out
}

// weight translates cpu.shares, 2 to 262144, into cpu.weight, 1 to 10000 (KEP-2254).
func weight(shares uint64) uint64 {
	return 1 + (min(max(shares, 2), 262144)-2)*9999/262142
}

// bound writes a limit; a negative one is none.
func bound(v int64) string {
	if v < 0 {
		return "max"
	}
	return strconv.FormatInt(v, 10)
}
