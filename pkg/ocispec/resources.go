package ocispec

import (
	"maps"
	"regexp"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/cgroup"
)

var (
	hugepageSize = regexp.MustCompile(`^[1-9][0-9]{0,9}[KMG]B$`)
	// unifiedKey is the name of a control file: controller, dot, name.
	unifiedKey = regexp.MustCompile(`^([a-z]+)(\.[a-zA-Z0-9_]+)+$`)
)

func (b *builder) resources() error {
	r := b.Container.GetLinux().GetResources()
	limits, warnings, err := Resources(r, b.Host.Cgroup)
	if err != nil {
		return err
	}
	b.out.Warnings = append(b.out.Warnings, warnings...)
	b.spec.Linux.Resources = limits
	if b.Host.Cgroup.Enabled() {
		b.gen.SetLinuxCgroupsPath(b.CgroupsPath)
	}
	score := int(r.GetOomScoreAdj())
	if score < -1000 || score > 1000 {
		return invalid("oom_score_adj %d is not between -1000 and 1000", score)
	}
	if least := min(b.Host.OOMScoreAdj+oomMargin, 1000); score < least {
		// 0 is also what stands there when nothing is asked for.
		if score != 0 {
			b.warn("oom_score_adj %d is below %d, the least that leaves the daemon alive, which has %d: %d is used",
				score, least, b.Host.OOMScoreAdj, least)
		}
		score = least
	}
	b.gen.SetProcessOOMScoreAdj(score)
	return nil
}

// oomMargin is how much sooner than the daemon the kernel kills a container when
// memory is short: with the daemon the node would end, and all containers with it. It
// is what systemd gives a user's services over the user's systemd.
const oomMargin = 100

// Resources translates limits, also for UpdateContainerResources. A limit whose
// controller is not delegated is left out and named in the warnings; the others
// stay. ErrInvalid wraps every complaint.
func Resources(r *runtimeapi.LinuxContainerResources, delegation cgroup.Delegation) (*specs.LinuxResources, []string, error) {
	out := &specs.LinuxResources{}
	if r == nil {
		return out, nil, nil
	}
	if r.CpuPeriod < 0 || r.CpuShares < 0 || r.CpuQuota < -1 || r.MemoryLimitInBytes < -1 || r.MemorySwapLimitInBytes < -1 {
		return nil, nil, invalid("negative resource limit")
	}
	l := limits{delegation: delegation, out: out}
	l.cpu(r)
	if err := l.memory(r); err != nil {
		return nil, nil, err
	}
	if err := l.hugepages(r.HugepageLimits); err != nil {
		return nil, nil, err
	}
	if err := l.unified(r.Unified); err != nil {
		return nil, nil, err
	}
	return out, l.warnings(), nil
}

// limits collects what can be set and what cannot.
type limits struct {
	delegation cgroup.Delegation
	out        *specs.LinuxResources
	dropped    map[string][]string // by controller
}

// can reports whether the controller is there; if not, what is dropped is noted.
func (l *limits) can(controller string, what ...string) bool {
	if l.delegation.Enabled() && l.delegation.Has(controller) {
		return true
	}
	l.note(controller, what...)
	return false
}

func (l *limits) note(controller string, what ...string) {
	if l.dropped == nil {
		l.dropped = map[string][]string{}
	}
	l.dropped[controller] = append(l.dropped[controller], what...)
}

func (l *limits) warnings() []string {
	var out []string
	for _, controller := range slices.Sorted(maps.Keys(l.dropped)) {
		what := strings.Join(l.dropped[controller], ", ")
		if l.delegation.Enabled() {
			out = append(out, "limits left out, the cgroup controller "+controller+" is not delegated: "+what)
		} else {
			out = append(out, "limits left out, no cgroups: "+what)
		}
	}
	return out
}

func (l *limits) cpu(r *runtimeapi.LinuxContainerResources) {
	cpu := &specs.LinuxCPU{}
	if r.CpuShares > 0 && l.can("cpu", "cpu_shares") {
		shares := uint64(r.CpuShares)
		cpu.Shares = &shares
	}
	if r.CpuQuota != 0 && l.can("cpu", "cpu_quota") {
		cpu.Quota = &r.CpuQuota
	}
	if r.CpuPeriod > 0 && l.can("cpu", "cpu_period") {
		period := uint64(r.CpuPeriod)
		cpu.Period = &period
	}
	if r.CpusetCpus != "" && l.can("cpuset", "cpuset_cpus") {
		cpu.Cpus = r.CpusetCpus
	}
	if r.CpusetMems != "" && l.can("cpuset", "cpuset_mems") {
		cpu.Mems = r.CpusetMems
	}
	if *cpu != (specs.LinuxCPU{}) {
		l.out.CPU = cpu
	}
}

// memory: the OCI's swap limit is memory and swap together. Without one, a limit
// on memory allows no swap, as the kubelet expects.
func (l *limits) memory(r *runtimeapi.LinuxContainerResources) error {
	limit, swap := r.MemoryLimitInBytes, r.MemorySwapLimitInBytes
	if swap > 0 && (limit <= 0 || swap < limit) {
		return invalid("memory_swap_limit_in_bytes %d is less than the memory limit %d, which it includes", swap, limit)
	}
	if limit != 0 && l.can("memory", "memory_limit_in_bytes") {
		l.out.Memory = &specs.LinuxMemory{Limit: &limit}
		if l.delegation.Swap {
			l.out.Memory.Swap = &limit
		}
	}
	if swap != 0 && !l.delegation.Swap && l.delegation.Has("memory") {
		l.note("memory (swap)", "memory_swap_limit_in_bytes")
		return nil
	}
	if swap != 0 && l.can("memory", "memory_swap_limit_in_bytes") {
		if l.out.Memory == nil {
			l.out.Memory = &specs.LinuxMemory{}
		}
		l.out.Memory.Swap = &swap
	}
	return nil
}

func (l *limits) hugepages(in []*runtimeapi.HugepageLimit) error {
	for _, h := range in {
		if !hugepageSize.MatchString(h.GetPageSize()) {
			return invalid("huge page size %.40q", h.GetPageSize())
		}
		if l.can("hugetlb", "hugepage_limits of "+h.GetPageSize()) {
			l.out.HugepageLimits = append(l.out.HugepageLimits, specs.LinuxHugepageLimit{Pagesize: h.GetPageSize(), Limit: h.GetLimit()})
		}
	}
	return nil
}

// unified keys become file names in the OCI runtime: nothing but a control file's
// name is let through.
func (l *limits) unified(in map[string]string) error {
	for _, key := range slices.Sorted(maps.Keys(in)) {
		m := unifiedKey.FindStringSubmatch(key)
		if m == nil || m[1] == "cgroup" {
			return invalid("unified key %.80q is not a limit of a cgroup controller", key)
		}
		if err := carriable("unified value", in[key]); err != nil {
			return err
		}
		if l.can(m[1], "unified "+key) {
			if l.out.Unified == nil {
				l.out.Unified = map[string]string{}
			}
			l.out.Unified[key] = in[key]
		}
	}
	return nil
}
