package stats

import (
	"context"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/cgroup"
)

// The metrics have cAdvisor's names, units and labels, so that what reads the
// kubelet's /metrics/cadvisor finds what it looks for. CRI has whole numbers
// only: times in seconds are rounded down.

// family is one metric: its descriptor, and how its samples come about.
type family struct {
	name, help string
	labels     []string // after baseLabels
	kind       runtimeapi.MetricType
	samples    func(*subject) []sample
}

// sample is a value with those label values that the family adds.
type sample struct {
	labels []string
	value  uint64
}

// subject is a container, or a pod (container nil).
type subject struct {
	*measured
	pod       *Pod
	container *Container
	network   network
	handles   *handles
	layer     *Usage
	statfs    *unix.Statfs_t
	mount     string
}

var baseLabels = []string{"id", "name", "image", "container", "pod", "namespace"}

// baseValues: the label "id" is the path of the cgroup, as in cAdvisor, or what
// stands for it where there is none.
func (s *subject) baseValues() []string {
	md := s.pod.Attributes.GetMetadata()
	podID := s.pod.Attributes.GetId()
	if c := s.container; c != nil {
		id := c.Attributes.GetId()
		return []string{cgroupID(c.Cgroup, "/"+podID+"/"+id), id, c.Image, c.Attributes.GetMetadata().GetName(), md.GetName(), md.GetNamespace()}
	}
	return []string{cgroupID(s.pod.Cgroup, "/"+podID), "", "", "", md.GetName(), md.GetNamespace()}
}

func cgroupID(dir, instead string) string {
	if path, ok := strings.CutPrefix(dir, "/sys/fs/cgroup/"); ok {
		return "/" + path
	}
	return instead
}

const (
	count = runtimeapi.MetricType_COUNTER
	gauge = runtimeapi.MetricType_GAUGE
)

// one makes a family without own labels; f says the value, and whether it is known.
func one(name, help string, kind runtimeapi.MetricType, f func(*subject) (uint64, bool)) family {
	return family{name: name, help: help, kind: kind, samples: func(s *subject) []sample {
		if v, ok := f(s); ok {
			return []sample{{value: v}}
		}
		return nil
	}}
}

func memoryStat(key string) func(*subject) (uint64, bool) {
	return func(s *subject) (uint64, bool) {
		if s.Memory == nil {
			return 0, false
		}
		v, ok := s.Memory.Stat[key]
		return v, ok
	}
}

func cfs(f func(*cgroup.CPU) uint64) func(*subject) (uint64, bool) {
	return func(s *subject) (uint64, bool) {
		if s.CPU == nil || s.CPU.Periods == 0 {
			return 0, false
		}
		return f(s.CPU), true
	}
}

func stalled(part func(*subject) *cgroup.Pressure, stall func(*cgroup.Pressure) cgroup.Stall) func(*subject) (uint64, bool) {
	return func(s *subject) (uint64, bool) {
		p := part(s)
		if p == nil {
			return 0, false
		}
		return stall(p).TotalUsec / 1e6, true
	}
}

func some(p *cgroup.Pressure) cgroup.Stall { return p.Some }
func full(p *cgroup.Pressure) cgroup.Stall { return p.Full }

func (s *subject) cpuPressure() *cgroup.Pressure {
	if s.CPU == nil {
		return nil
	}
	return s.CPU.Pressure
}

func (s *subject) memoryPressure() *cgroup.Pressure {
	if s.Memory == nil {
		return nil
	}
	return s.Memory.Pressure
}

func (s *subject) ioPressure() *cgroup.Pressure {
	if s.IO == nil {
		return nil
	}
	return s.IO.Pressure
}

func perInterface(name, help string, f func(netInterface) uint64) family {
	return family{name: name, help: help, labels: []string{"interface"}, kind: count, samples: func(s *subject) []sample {
		var out []sample
		for _, i := range s.network.interfaces {
			if i.name == loopback {
				continue
			}
			out = append(out, sample{[]string{i.name}, f(i)})
		}
		return out
	}}
}

func onDisk(name, help string, kind runtimeapi.MetricType, f func(*subject) (uint64, bool)) family {
	return family{name: name, help: help, labels: []string{"device"}, kind: kind, samples: func(s *subject) []sample {
		if v, ok := f(s); ok {
			return []sample{{[]string{s.mount}, v}}
		}
		return nil
	}}
}

func limit(f func(*runtimeapi.LinuxContainerResources) int64) func(*subject) (uint64, bool) {
	return func(s *subject) (uint64, bool) {
		if s.container == nil || s.container.Resources == nil {
			return 0, false
		}
		return uint64(max(0, f(s.container.Resources))), true
	}
}

// Descriptors lists all metrics that Metrics may return.
func Descriptors() []*runtimeapi.MetricDescriptor {
	var out []*runtimeapi.MetricDescriptor
	for _, f := range families() {
		out = append(out, &runtimeapi.MetricDescriptor{
			Name: f.name, Help: f.help, LabelKeys: append(append([]string{}, baseLabels...), f.labels...),
		})
	}
	return out
}

// Metrics measures pods and their containers, in the order of pods. A metric
// whose source is not there (a controller, a limit) is left out, not zero.
func (c *Collector) Metrics(ctx context.Context, pods []Pod) []*runtimeapi.PodSandboxMetrics {
	var containers []Container
	for _, p := range pods {
		containers = append(containers, p.Containers...)
	}
	all, table := c.measure(containers)
	if table == nil {
		table = readProcesses()
	}
	links := maxLinks
	networks := readNetworks(pods)
	var fs *unix.Statfs_t
	var st unix.Statfs_t
	if c.options.Mountpoint != "" && unix.Statfs(c.options.Mountpoint, &st) == nil {
		fs = &st
	}
	known := families()
	until := time.Now().Add(layerPatience)
	out := make([]*runtimeapi.PodSandboxMetrics, 0, len(pods))
	for i, p := range pods {
		pod := &subject{measured: c.pod(p, all), pod: &p, network: networks[i]}
		pm := &runtimeapi.PodSandboxMetrics{PodSandboxId: p.Attributes.GetId(), Metrics: pod.metrics(known)}
		for _, ct := range p.Containers {
			s := &subject{measured: all[ct.Attributes.GetId()], pod: &p, container: &ct, statfs: fs, mount: c.options.Mountpoint, handles: table.handles(ct.Init, &links)}
			if u, _, ok := c.layer(ctx, ct.Attributes.GetId(), until); ok {
				s.layer = &u
			}
			pm.ContainerMetrics = append(pm.ContainerMetrics, &runtimeapi.ContainerMetrics{
				ContainerId: ct.Attributes.GetId(), Metrics: s.metrics(known),
			})
		}
		out = append(out, pm)
	}
	return out
}

func (s *subject) metrics(known []family) []*runtimeapi.Metric {
	base := s.baseValues()
	var out []*runtimeapi.Metric
	for _, f := range known {
		for _, v := range f.samples(s) {
			out = append(out, &runtimeapi.Metric{
				Name: f.name, MetricType: f.kind, Value: value(v.value),
				LabelValues: append(append([]string{}, base...), v.labels...),
				// Timestamp 0: gathered live.
			})
		}
	}
	return out
}

// lastSeen is the time of the measurement.
func lastSeen(s *subject) (uint64, bool) { return uint64(s.At.Unix()), s.CPU != nil }

func startTime(s *subject) (uint64, bool) {
	if s.container == nil || s.container.StartedAt.IsZero() || s.container.StartedAt.Before(time.Unix(0, 0)) {
		return 0, false
	}
	return uint64(s.container.StartedAt.Unix()), true
}
