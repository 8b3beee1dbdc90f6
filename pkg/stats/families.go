package stats

import (
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/cgroup"
)

// families lists the metrics, by what they measure.
func families() []family {
	var all []family
	for _, group := range [][]family{
		cpuFamilies(), memoryFamilies(), processFamilies(), diskFamilies(), networkFamilies(), pressureFamilies(), specFamilies(),
	} {
		all = append(all, group...)
	}
	return all
}

func cpuFamilies() []family {
	return []family{
		{name: "container_cpu_usage_seconds_total", help: "Cumulative CPU time consumed in seconds.", labels: []string{"cpu"}, kind: count,
			samples: func(s *subject) []sample {
				if s.CPU == nil {
					return nil
				}
				return []sample{{[]string{"total"}, s.usage / 1e9}}
			}},
		one("container_cpu_user_seconds_total", "Cumulative user CPU time consumed in seconds.", count,
			func(s *subject) (uint64, bool) {
				if s.CPU == nil {
					return 0, false
				}
				return s.CPU.UserUsec / 1e6, true
			}),
		one("container_cpu_system_seconds_total", "Cumulative system CPU time consumed in seconds.", count,
			func(s *subject) (uint64, bool) {
				if s.CPU == nil {
					return 0, false
				}
				return s.CPU.SystemUsec / 1e6, true
			}),
		one("container_cpu_cfs_periods_total", "Number of elapsed enforcement period intervals.", count,
			cfs(func(c *cgroup.CPU) uint64 { return c.Periods })),
		one("container_cpu_cfs_throttled_periods_total", "Number of throttled period intervals.", count,
			cfs(func(c *cgroup.CPU) uint64 { return c.ThrottledPeriods })),
		one("container_cpu_cfs_throttled_seconds_total", "Total time duration the container has been throttled.", count,
			cfs(func(c *cgroup.CPU) uint64 { return c.ThrottledUsec / 1e6 })),
	}
}

func memoryFamilies() []family {
	known := func(f func(*cgroup.Memory) uint64) func(*subject) (uint64, bool) {
		return func(s *subject) (uint64, bool) {
			if s.Memory == nil {
				return 0, false
			}
			return f(s.Memory), true
		}
	}
	inCgroup := func(f func(*cgroup.Memory) uint64) func(*subject) (uint64, bool) {
		return func(s *subject) (uint64, bool) {
			if s.Memory == nil || !s.fromCgroup() {
				return 0, false
			}
			return f(s.Memory), true
		}
	}
	return []family{
		one("container_memory_usage_bytes", "Current memory usage in bytes, including all memory regardless of when it was accessed.", gauge,
			known(func(m *cgroup.Memory) uint64 { return m.Current })),
		one("container_memory_working_set_bytes", "Current working set in bytes.", gauge,
			known(func(m *cgroup.Memory) uint64 { return m.WorkingSet() })),
		one("container_memory_rss", "Size of RSS in bytes.", gauge, memoryStat("anon")),
		one("container_memory_cache", "Number of bytes of page cache memory.", gauge, memoryStat("file")),
		one("container_memory_mapped_file", "Size of memory mapped files in bytes.", gauge, memoryStat("file_mapped")),
		one("container_memory_kernel_usage", "Size of kernel memory allocated in bytes.", gauge, memoryStat("kernel")),
		one("container_memory_swap", "Container swap usage in bytes.", gauge, inCgroup(func(m *cgroup.Memory) uint64 { return m.Swap })),
		one("container_memory_failcnt", "Number of memory usage hits limits.", count, inCgroup(func(m *cgroup.Memory) uint64 { return m.LimitHits })),
		one("container_memory_max_usage_bytes", "Maximum memory usage recorded in bytes.", gauge, func(s *subject) (uint64, bool) {
			if s.Memory == nil || s.Memory.Peak == 0 {
				return 0, false
			}
			return s.Memory.Peak, true
		}),
		one("container_oom_events_total", "Count of out of memory events observed for the container.", count,
			inCgroup(func(m *cgroup.Memory) uint64 { return m.OOMKills })),
		{name: "container_memory_failures_total", help: "Cumulative count of memory allocation failures.",
			labels: []string{"failure_type", "scope"}, kind: count, samples: func(s *subject) []sample {
				if s.Memory == nil {
					return nil
				}
				return []sample{
					{[]string{"pgfault", "container"}, s.faults}, {[]string{"pgmajfault", "container"}, s.majors},
					{[]string{"pgfault", "hierarchy"}, s.faults}, {[]string{"pgmajfault", "hierarchy"}, s.majors},
				}
			}},
	}
}

func processFamilies() []family {
	return []family{
		one("container_processes", "Number of processes running inside the container.", gauge,
			func(s *subject) (uint64, bool) { return s.processes, s.CPU != nil }),
		one("container_file_descriptors", "Number of open file descriptors for the container.", gauge,
			func(s *subject) (uint64, bool) {
				if s.handles == nil {
					return 0, false
				}
				return s.handles.files, true
			}),
		one("container_sockets", "Number of open sockets for the container.", gauge,
			func(s *subject) (uint64, bool) {
				if s.handles == nil || !s.handles.socketsKnown {
					return 0, false
				}
				return s.handles.sockets, true
			}),
		one("container_threads", "Number of threads running inside the container.", gauge,
			func(s *subject) (uint64, bool) { return s.threads, s.Pids != nil }),
		one("container_threads_max", "Maximum number of threads allowed inside the container.", gauge,
			func(s *subject) (uint64, bool) {
				if s.Pids == nil || s.Pids.Limit == 0 {
					return 0, false
				}
				return s.Pids.Limit, true
			}),
		one("container_start_time_seconds", "Start time of the container since unix epoch in seconds.", gauge, startTime),
		one("container_last_seen", "Last time a container was seen by the exporter.", gauge, lastSeen),
	}
}

func diskFamilies() []family {
	io := func(f func(*cgroup.IO) uint64) func(*subject) (uint64, bool) {
		return func(s *subject) (uint64, bool) {
			if s.IO == nil {
				return 0, false
			}
			return f(s.IO), true
		}
	}
	fs := func(f func(*subject) uint64) func(*subject) (uint64, bool) {
		return func(s *subject) (uint64, bool) {
			if s.statfs == nil {
				return 0, false
			}
			return f(s), true
		}
	}
	return []family{
		{name: "container_blkio_device_usage_total", help: "Blkio device bytes usage.", labels: []string{"device", "major", "minor", "operation"}, kind: count, samples: blockDevices},
		onDisk("container_fs_usage_bytes", "Number of bytes that are consumed by the container on this filesystem.", gauge,
			func(s *subject) (uint64, bool) {
				if s.layer == nil {
					return 0, false
				}
				return s.layer.Bytes, true
			}),
		onDisk("container_fs_limit_bytes", "Number of bytes that can be consumed by the container on this filesystem.", gauge,
			fs(func(s *subject) uint64 { return s.statfs.Blocks * uint64(s.statfs.Bsize) })),
		onDisk("container_fs_inodes_total", "Number of Inodes.", gauge, fs(func(s *subject) uint64 { return s.statfs.Files })),
		onDisk("container_fs_inodes_free", "Number of available Inodes.", gauge, fs(func(s *subject) uint64 { return s.statfs.Ffree })),
		onDisk("container_fs_reads_bytes_total", "Cumulative count of bytes read.", count, io(func(i *cgroup.IO) uint64 { return i.ReadBytes })),
		onDisk("container_fs_writes_bytes_total", "Cumulative count of bytes written.", count, io(func(i *cgroup.IO) uint64 { return i.WriteBytes })),
		onDisk("container_fs_reads_total", "Cumulative count of reads completed.", count, io(func(i *cgroup.IO) uint64 { return i.Reads })),
		onDisk("container_fs_writes_total", "Cumulative count of writes completed.", count, io(func(i *cgroup.IO) uint64 { return i.Writes })),
	}
}

func networkFamilies() []family {
	return []family{
		perInterface("container_network_receive_bytes_total", "Cumulative count of bytes received.", func(i netInterface) uint64 { return i.rxBytes }),
		perInterface("container_network_receive_packets_total", "Cumulative count of packets received.", func(i netInterface) uint64 { return i.rxPackets }),
		perInterface("container_network_receive_errors_total", "Cumulative count of errors encountered while receiving.", func(i netInterface) uint64 { return i.rxErrors }),
		perInterface("container_network_receive_packets_dropped_total", "Cumulative count of packets dropped while receiving.", func(i netInterface) uint64 { return i.rxDropped }),
		perInterface("container_network_transmit_bytes_total", "Cumulative count of bytes transmitted.", func(i netInterface) uint64 { return i.txBytes }),
		perInterface("container_network_transmit_packets_total", "Cumulative count of packets transmitted.", func(i netInterface) uint64 { return i.txPackets }),
		perInterface("container_network_transmit_errors_total", "Cumulative count of errors encountered while transmitting.", func(i netInterface) uint64 { return i.txErrors }),
		perInterface("container_network_transmit_packets_dropped_total", "Cumulative count of packets dropped while transmitting.", func(i netInterface) uint64 { return i.txDropped }),
	}
}

func pressureFamilies() []family {
	return []family{
		one("container_pressure_cpu_waiting_seconds_total", "Total time duration tasks in the container have waited due to CPU congestion.", count, stalled((*subject).cpuPressure, some)),
		one("container_pressure_cpu_stalled_seconds_total", "Total time duration no tasks in the container could make progress due to CPU congestion.", count, stalled((*subject).cpuPressure, full)),
		one("container_pressure_memory_waiting_seconds_total", "Total time duration tasks in the container have waited due to memory congestion.", count, stalled((*subject).memoryPressure, some)),
		one("container_pressure_memory_stalled_seconds_total", "Total time duration no tasks in the container could make progress due to memory congestion.", count, stalled((*subject).memoryPressure, full)),
		one("container_pressure_io_waiting_seconds_total", "Total time duration tasks in the container have waited due to IO congestion.", count, stalled((*subject).ioPressure, some)),
		one("container_pressure_io_stalled_seconds_total", "Total time duration no tasks in the container could make progress due to IO congestion.", count, stalled((*subject).ioPressure, full)),
	}
}

func specFamilies() []family {
	return []family{
		one("container_spec_cpu_period", "CPU period of the container.", gauge, limit((*runtimeapi.LinuxContainerResources).GetCpuPeriod)),
		one("container_spec_cpu_quota", "CPU quota of the container.", gauge, limit((*runtimeapi.LinuxContainerResources).GetCpuQuota)),
		one("container_spec_cpu_shares", "CPU share of the container.", gauge, limit((*runtimeapi.LinuxContainerResources).GetCpuShares)),
		one("container_spec_memory_limit_bytes", "Memory limit for the container.", gauge, limit((*runtimeapi.LinuxContainerResources).GetMemoryLimitInBytes)),
		one("container_spec_memory_swap_limit_bytes", "Memory swap limit for the container.", gauge, limit((*runtimeapi.LinuxContainerResources).GetMemorySwapLimitInBytes)),
	}
}
