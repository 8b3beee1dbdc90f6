// Package stats measures containers and pod sandboxes for CRI: from their
// cgroups where a controller is there, and from /proc for what it does not tell.
package stats

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/cgroup"
	"github.com/subpod/subpod/pkg/proc"
)

// Container says what to measure.
type Container struct {
	// Attributes are handed on as they are; the ID is taken from them.
	Attributes *runtimeapi.ContainerAttributes
	// Cgroup is the container's cgroup v2 directory, "" when it has none.
	Cgroup string
	// Init is the container's main process as seen from this process. When it
	// is gone, only the writable layer is measured.
	Init proc.ID
	// The rest is for metrics only.
	Image     string
	StartedAt time.Time
	Resources *runtimeapi.LinuxContainerResources
}

// Pod says what to measure of a pod sandbox.
type Pod struct {
	Attributes *runtimeapi.PodSandboxAttributes
	// Cgroup is the pod's cgroup v2 directory; "" means that its numbers are
	// the sums of its containers'.
	Cgroup string
	// NetNS is the path of the pod's own network namespace; "" for a pod on the
	// node's network, whose traffic cannot be separated: it has no network
	// statistics.
	NetNS string
	// Interface is the default interface in NetNS, "" for "eth0".
	Interface  string
	Containers []Container
}

// Usage is what a file system tree takes.
type Usage struct{ Bytes, Inodes uint64 }

// Options of a Collector.
type Options struct {
	// RootfsUsage returns what the writable layer of a container takes (storage.Rootfs.Usage,
	// which bounds the time that goes into one layer). It may be slow, and ends with its
	// context. Nil: no file system statistics.
	RootfsUsage func(ctx context.Context, containerID string) (Usage, error)
	// Mountpoint is where the file system of the writable layers is mounted.
	Mountpoint string
	Log        *slog.Logger
}

// Collector measures, and remembers what rates and cumulative counts need. All
// methods may be called concurrently.
type Collector struct {
	options Options

	pass sync.Mutex // one reading of all processes at a time

	mu     sync.Mutex
	memory map[string]*memory // by container or pod ID
	// measuring is the time that went into layers since measuringAt.
	measuringAt time.Time
	measuring   time.Duration
}

const (
	// layerPatience bounds what one request waits for writable layers that are being measured:
	// one with tens of millions of files must not keep it from all the rest.
	layerPatience = 2 * time.Second
	// leastPatience is what it waits for each layer when that is over.
	leastPatience = 20 * time.Millisecond
	// layerRest is how long the usage of a layer counts.
	layerRest = 10 * time.Second
)

// layerBudget is how much of each second goes into measuring writable layers anew:
// hundreds of them that are due at the same time must not hold one request up.
const layerBudget = 10 * time.Millisecond

// mayMeasure reports whether there is time left to measure a layer anew.
func (c *Collector) mayMeasure() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := time.Now(); now.Sub(c.measuringAt) > time.Second {
		c.measuringAt, c.measuring = now, 0
	}
	return c.measuring < layerBudget
}

// memory is what is kept of one container or pod between measurements.
type memory struct {
	cpu, faults, majorFaults counter
	rate                     rate

	layer   Usage
	layerAt time.Time

	kept      *measured // read only
	keptOf    Container
	keptUntil time.Time
}

// Reading all processes takes a time that grows with their number: at most one part in
// keepFactor of all time goes into it. So a measurement is used again for that many
// times what its pass took, and for no longer than maxKept.
const (
	keepFactor = 50
	maxKept    = time.Second
)

// keep remembers what was measured of a container in a pass that took so long.
func (c *Collector) keep(ct Container, m *measured, took time.Duration) {
	c.with(ct.Attributes.GetId(), func(k *memory) {
		k.kept, k.keptOf, k.keptUntil = m, ct, time.Now().Add(min(keepFactor*took, maxKept))
	})
}

// recent returns what was measured of a container a moment ago; nil when that is too old,
// or the container has ended since.
func (c *Collector) recent(ct Container) (m *measured) {
	c.with(ct.Attributes.GetId(), func(k *memory) {
		if k.kept != nil && k.keptOf.Init == ct.Init && k.keptOf.Cgroup == ct.Cgroup && time.Now().Before(k.keptUntil) {
			m = k.kept
		}
	})
	if m != nil && (ct.Init.PID <= 0 || errors.Is(unix.Kill(ct.Init.PID, 0), unix.ESRCH)) {
		return nil
	}
	return m
}

// New makes a Collector.
func New(o Options) *Collector {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	return &Collector{options: o, memory: map[string]*memory{}}
}

// Forget drops what is remembered of containers and pods that were removed. It
// is idempotent.
func (c *Collector) Forget(ids ...string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, id := range ids {
		delete(c.memory, id)
	}
}

// with runs f on the memory of id.
func (c *Collector) with(id string, f func(*memory)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	m := c.memory[id]
	if m == nil {
		m = &memory{}
		c.memory[id] = m
	}
	f(m)
}

// counter keeps a cumulative count from falling when what was counted is gone:
// a process that ended without being waited for takes its time with it.
type counter struct{ lost, last uint64 }

func (k *counter) update(v uint64) uint64 { return k.updateCoarse(v, 0) }

// updateCoarse is update for a number of which a part is rounded down by up to grain: a fall
// of no more is no loss.
func (k *counter) updateCoarse(v, grain uint64) uint64 {
	if v < k.last && k.last-v < grain {
		return k.lost + k.last
	}
	if v < k.last {
		k.lost += k.last - v
	}
	k.last = v
	return k.lost + v
}

// minWindow is the shortest time over which a rate is taken: below it the
// granularity of the counters (10 ms in /proc, for children that have ended) shows.
const minWindow = time.Second

// rate is CPU time per time, over the last window of at least minWindow.
type rate struct {
	at    time.Time
	usage uint64 // nanoseconds
	cores *runtimeapi.UInt64Value
}

// update returns nanocores; nil until there were two samples far enough apart.
func (r *rate) update(at time.Time, usage uint64) *runtimeapi.UInt64Value {
	window := at.Sub(r.at)
	switch {
	case r.at.IsZero() || usage < r.usage:
		*r = rate{at: at, usage: usage}
	case window >= minWindow:
		cores := uint64(float64(usage-r.usage) / window.Seconds())
		*r = rate{at, usage, value(cores)}
	}
	return r.cores
}

func value(v uint64) *runtimeapi.UInt64Value { return &runtimeapi.UInt64Value{Value: v} }

// measured is one container or pod at one moment, whatever the numbers are from.
// CPU and Memory are nil when nothing runs.
type measured struct {
	cgroup.Stats
	processes, threads uint64
	usage              uint64 // CPU time in nanoseconds, never falling
	grain              uint64 // nanoseconds by which CPU may be too small
	nanoCores          *runtimeapi.UInt64Value
	faults, majors     uint64
}

// measure measures all containers with at most one pass through /proc, which it returns;
// nil when there was none.
func (c *Collector) measure(containers []Container) (map[string]*measured, *processes) {
	c.pass.Lock()
	defer c.pass.Unlock()
	begin := time.Now()
	all := make(map[string]*measured, len(containers))
	var table *processes
	var anew, byProcess []Container
	for _, ct := range containers {
		if m := c.recent(ct); m != nil {
			all[ct.Attributes.GetId()] = m
			continue
		}
		m := &measured{Stats: cgroup.Stats{At: time.Now()}}
		all[ct.Attributes.GetId()] = m
		anew = append(anew, ct)
		if ct.Cgroup != "" {
			if s, err := cgroup.Read(ct.Cgroup); err == nil {
				m.Stats = s
				m.processes = countProcesses(ct.Cgroup)
			} else {
				c.options.Log.Debug("cgroup statistics", "container", ct.Attributes.GetId(), "error", err)
			}
		}
		if m.CPU == nil || m.Memory == nil || m.Pids == nil {
			byProcess = append(byProcess, ct)
		}
	}
	if len(byProcess) > 0 {
		table = readProcesses()
		table.prepare(byProcess)
		proc.InParallel(len(byProcess), func(i int) {
			table.fill(all[byProcess[i].Attributes.GetId()], byProcess[i].Init)
		})
	}
	for _, ct := range anew {
		m := all[ct.Attributes.GetId()]
		if m.Pids != nil {
			m.threads = m.Pids.Current
		}
		c.accumulate(ct.Attributes.GetId(), m)
	}
	took := time.Since(begin)
	for _, ct := range anew {
		c.keep(ct, all[ct.Attributes.GetId()], took)
	}
	return all, table
}

// accumulate turns momentary counts into ones that never fall, and rates.
func (c *Collector) accumulate(id string, m *measured) {
	c.with(id, func(k *memory) {
		if m.CPU != nil {
			m.usage = k.cpu.updateCoarse(m.CPU.UsageUsec*1000, m.grain)
			m.nanoCores = k.rate.update(m.At, m.usage)
		}
		if m.Memory != nil {
			m.faults = k.faults.update(m.Memory.Stat["pgfault"])
			m.majors = k.majorFaults.update(m.Memory.Stat["pgmajfault"])
		}
	})
}

// layer returns the usage of a container's writable layer and when it was
// measured; false when it is not known. until is when the request's patience is over.
func (c *Collector) layer(ctx context.Context, id string, until time.Time) (Usage, time.Time, bool) {
	if c.options.RootfsUsage == nil {
		return Usage{}, time.Time{}, false
	}
	var kept memory
	c.with(id, func(m *memory) { kept = *m })
	if !kept.layerAt.IsZero() && time.Since(kept.layerAt) < layerRest {
		return kept.layer, kept.layerAt, true
	}
	if !kept.layerAt.IsZero() && !c.mayMeasure() {
		return kept.layer, kept.layerAt, true
	}
	start := time.Now()
	ctx, cancel := context.WithTimeout(ctx, max(leastPatience, until.Sub(start)))
	defer cancel()
	u, err := c.options.RootfsUsage(ctx, id)
	if err != nil && ctx.Err() != nil && !kept.layerAt.IsZero() {
		return kept.layer, kept.layerAt, true
	}
	if err != nil {
		c.options.Log.Debug("usage of the writable layer", "container", id, "error", err)
		return Usage{}, time.Time{}, false
	}
	c.with(id, func(m *memory) {
		m.layer, m.layerAt = u, start
		c.measuring += time.Since(start)
	})
	return u, start, true
}
