package stats

import (
	"context"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/cgroup"
)

// Containers measures containers, in their order. What cannot be known is nil:
// all but the writable layer of a container that does not run; rates until the
// second call, a second later; swap, PSI and available memory without the
// controllers and limits that they come from.
func (c *Collector) Containers(ctx context.Context, containers []Container) []*runtimeapi.ContainerStats {
	all, _ := c.measure(containers)
	until := time.Now().Add(layerPatience)
	out := make([]*runtimeapi.ContainerStats, 0, len(containers))
	for _, ct := range containers {
		out = append(out, c.container(ctx, ct, all[ct.Attributes.GetId()], until))
	}
	return out
}

func (c *Collector) container(ctx context.Context, ct Container, m *measured, until time.Time) *runtimeapi.ContainerStats {
	s := &runtimeapi.ContainerStats{
		Attributes: ct.Attributes,
		Cpu:        m.cpu(),
		Memory:     m.memory(),
		Swap:       m.swap(),
		Io:         m.io(),
	}
	if u, at, ok := c.layer(ctx, ct.Attributes.GetId(), until); ok {
		s.WritableLayer = &runtimeapi.FilesystemUsage{
			Timestamp:  at.UnixNano(),
			FsId:       &runtimeapi.FilesystemIdentifier{Mountpoint: c.options.Mountpoint},
			UsedBytes:  value(u.Bytes),
			InodesUsed: value(u.Inodes),
		}
	}
	return s
}

// Pods measures pod sandboxes and their containers, in their order.
func (c *Collector) Pods(ctx context.Context, pods []Pod) []*runtimeapi.PodSandboxStats {
	var containers []Container
	for _, p := range pods {
		containers = append(containers, p.Containers...)
	}
	all, _ := c.measure(containers)
	networks := readNetworks(pods)
	until := time.Now().Add(layerPatience)
	out := make([]*runtimeapi.PodSandboxStats, 0, len(pods))
	for i, p := range pods {
		if err := networks[i].err; err != nil {
			c.options.Log.Debug("network statistics", "pod", p.Attributes.GetId(), "error", err)
		}
		m := c.pod(p, all)
		linux := &runtimeapi.LinuxPodSandboxStats{
			Cpu:     m.cpu(),
			Memory:  m.memory(),
			Network: networks[i].usage(p.Interface),
			Process: &runtimeapi.ProcessUsage{Timestamp: m.At.UnixNano(), ProcessCount: value(m.processes)},
			Io:      m.io(),
		}
		for _, ct := range p.Containers {
			linux.Containers = append(linux.Containers, c.container(ctx, ct, all[ct.Attributes.GetId()], until))
		}
		out = append(out, &runtimeapi.PodSandboxStats{Attributes: p.Attributes, Linux: linux})
	}
	return out
}

// pod measures a pod's cgroup, and adds its containers up for what that does
// not tell.
func (c *Collector) pod(p Pod, all map[string]*measured) *measured {
	sum := sumOf(p.Containers, all)
	m := sum
	if p.Cgroup != "" {
		s, err := cgroup.Read(p.Cgroup)
		if err == nil {
			m = &measured{Stats: s, processes: countProcesses(p.Cgroup)}
			if m.CPU == nil {
				m.CPU = sum.CPU
			}
			if m.Memory == nil {
				m.Memory = sum.Memory
				m.Memory.Pressure = m.MemoryPressure
			}
			if m.Pids == nil {
				m.Pids = sum.Pids
			}
		} else {
			c.options.Log.Debug("cgroup statistics", "pod", p.Attributes.GetId(), "error", err)
		}
	}
	if m.Pids != nil {
		m.threads = m.Pids.Current
	}
	c.accumulate(p.Attributes.GetId(), m)
	return m
}

// sumOf adds up what containers use. A pod without a running one uses nothing,
// which is a number and not an unknown.
func sumOf(containers []Container, all map[string]*measured) *measured {
	sum := &measured{Stats: cgroup.Stats{
		At: time.Now(), CPU: &cgroup.CPU{}, Pids: &cgroup.Pids{}, Memory: &cgroup.Memory{Stat: map[string]uint64{}},
	}}
	for _, ct := range containers {
		m := all[ct.Attributes.GetId()]
		sum.processes += m.processes
		if m.CPU != nil {
			sum.CPU.UsageUsec += m.usage / 1000
			sum.CPU.UserUsec += m.CPU.UserUsec
			sum.CPU.SystemUsec += m.CPU.SystemUsec
		}
		if m.Memory != nil {
			sum.Memory.Current += m.Memory.Current
			sum.Memory.Swap += m.Memory.Swap
			sum.Memory.OOMKills += m.Memory.OOMKills
			sum.Memory.LimitHits += m.Memory.LimitHits
			for k, v := range m.Memory.Stat {
				sum.Memory.Stat[k] += v
			}
		}
		if m.Pids != nil {
			sum.Pids.Current += m.Pids.Current
		}
	}
	return sum
}

func (m *measured) cpu() *runtimeapi.CpuUsage {
	if m.CPU == nil {
		return nil
	}
	return &runtimeapi.CpuUsage{
		Timestamp:            m.At.UnixNano(),
		UsageCoreNanoSeconds: value(m.usage),
		UsageNanoCores:       m.nanoCores,
		Psi:                  psi(m.CPU.Pressure),
	}
}

func (m *measured) memory() *runtimeapi.MemoryUsage {
	if m.Memory == nil {
		return nil
	}
	u := &runtimeapi.MemoryUsage{
		Timestamp:       m.At.UnixNano(),
		WorkingSetBytes: value(m.Memory.WorkingSet()),
		UsageBytes:      value(m.Memory.Current),
		// memory.stat's anon has transparent huge pages in it, and swapcached
		// is the swap cache (admin-guide/cgroup-v2.rst).
		RssBytes:        value(m.Memory.Stat["anon"] + m.Memory.Stat["swapcached"]),
		PageFaults:      value(m.faults - min(m.faults, m.majors)),
		MajorPageFaults: value(m.majors),
		Psi:             psi(m.Memory.Pressure),
	}
	if m.Memory.Limit > 0 {
		u.AvailableBytes = value(m.Memory.Limit - min(m.Memory.Limit, m.Memory.WorkingSet()))
	}
	return u
}

func (m *measured) swap() *runtimeapi.SwapUsage {
	if m.Memory == nil || !m.fromCgroup() {
		return nil
	}
	u := &runtimeapi.SwapUsage{Timestamp: m.At.UnixNano(), SwapUsageBytes: value(m.Memory.Swap)}
	if m.Memory.SwapLimit > 0 {
		u.SwapAvailableBytes = value(m.Memory.SwapLimit - min(m.Memory.SwapLimit, m.Memory.Swap))
	}
	return u
}

// fromCgroup reports whether the memory numbers are a cgroup's: only those know
// page cache.
func (m *measured) fromCgroup() bool {
	_, ok := m.Memory.Stat["inactive_file"]
	return ok
}

func (m *measured) io() *runtimeapi.IoUsage {
	if m.IO == nil || m.IO.Pressure == nil {
		return nil
	}
	return &runtimeapi.IoUsage{Timestamp: m.At.UnixNano(), Psi: psi(m.IO.Pressure)}
}

func psi(p *cgroup.Pressure) *runtimeapi.PsiStats {
	if p == nil {
		return nil
	}
	data := func(s cgroup.Stall) *runtimeapi.PsiData {
		return &runtimeapi.PsiData{Total: s.TotalUsec * 1000, Avg10: s.Avg10, Avg60: s.Avg60, Avg300: s.Avg300}
	}
	return &runtimeapi.PsiStats{Some: data(p.Some), Full: data(p.Full)}
}
