package main

import (
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/cmd/internal/kube"
	"github.com/subpod/subpod/pkg/api"
)

// parseSize reads a flag that is a number of bytes.
func parseSize(flag, value string) (int64, error) {
	n, err := kube.ParseBytes(value)
	if err != nil || n <= 0 {
		return 0, usagef("invalid %s %q: expected a number of bytes such as 512m or 2g", flag, value)
	}
	return n, nil
}

// maxCPUs is more than any machine has: more would be no limit, and no quota either.
const maxCPUs = 1 << 20

func validCPUs(n float64) bool { return n >= 0 && n <= maxCPUs } // not NaN

func invalidCPUs(n float64) error {
	return usagef("invalid --cpus %v: expected a number of CPUs such as 1.5", n)
}

func (o *runOptions) fillLimits(ctr *runtimeapi.ContainerConfig) error {
	res := &runtimeapi.LinuxContainerResources{
		CpuShares: int64(min(o.cpuShares, math.MaxInt64)), CpuPeriod: o.cpuPeriod, CpuQuota: o.cpuQuota,
		CpusetCpus: o.cpusetCPUs, CpusetMems: o.cpusetMems, OomScoreAdj: o.oomScoreAdj, Unified: map[string]string{},
	}
	if err := o.fillMemory(res); err != nil {
		return err
	}
	if o.cpus > 0 {
		res.CpuPeriod = 100_000
		res.CpuQuota = max(int64(o.cpus*100_000), 1000) // the minimum of the kernel
	}
	switch {
	case o.pidsLimit > 0:
		res.Unified["pids.max"] = strconv.FormatInt(o.pidsLimit, 10)
	case o.given("pids-limit"):
		res.Unified["pids.max"] = "max"
	}
	ctr.Linux.Resources = res
	return nil
}

func (o *runOptions) fillMemory(res *runtimeapi.LinuxContainerResources) (err error) {
	if o.memory != "" {
		if res.MemoryLimitInBytes, err = parseSize("-m", o.memory); err != nil {
			return err
		}
	}
	switch {
	case o.memorySwap == "":
	case o.memorySwap == "-1":
		res.MemorySwapLimitInBytes = -1
	case o.memory == "":
		return usagef("--memory-swap needs -m: it is the limit of memory and swap together")
	default:
		if res.MemorySwapLimitInBytes, err = parseSize("--memory-swap", o.memorySwap); err != nil {
			return err
		}
		if res.MemorySwapLimitInBytes < res.MemoryLimitInBytes {
			return usagef("--memory-swap %s is less than -m %s, which it includes", o.memorySwap, o.memory)
		}
	}
	if o.memoryReservation != "" {
		n, err := parseSize("--memory-reservation", o.memoryReservation)
		if err != nil {
			return err
		}
		res.Unified["memory.low"] = strconv.FormatInt(n, 10)
	}
	return nil
}

// limited returns the flags that need a cgroup, of those that are given.
func (o *moreOptions) limited() []string {
	var out []string
	for _, name := range []string{"memory", "cpus", "memory-swap", "memory-reservation", "pids-limit", "cpu-shares", "cpu-period", "cpu-quota", "cpuset-cpus", "cpuset-mems"} {
		if o.given(name) {
			out = append(out, "--"+name)
		}
	}
	return out
}

// ulimitNames are the names of getrlimit(2) that the shells and Docker use.
var ulimitNames = strings.Fields("as core cpu data fsize locks memlock msgqueue nice nofile nproc rss rtprio rttime sigpending stack")

func (o *moreOptions) fillUlimits(options *api.ContainerOptions) error {
	for _, u := range o.ulimits {
		if u == "host" {
			continue // limits of the daemon are those of a container that asks for none
		}
		name, text, _ := strings.Cut(u, "=")
		soft, hard, hasHard := strings.Cut(text, ":")
		if !hasHard {
			hard = soft
		}
		s, err := parseLimit(soft)
		h, hardErr := parseLimit(hard)
		if name = strings.ToLower(name); !slices.Contains(ulimitNames, name) || err != nil || hardErr != nil || s > h {
			return usagef("invalid --ulimit %q: expected NAME=SOFT[:HARD], NAME one of %s", u, strings.Join(ulimitNames, ", "))
		}
		options.Rlimits = append(options.Rlimits, api.Rlimit{Name: "RLIMIT_" + strings.ToUpper(name), Soft: s, Hard: h})
	}
	return nil
}

func parseLimit(s string) (uint64, error) {
	if s == "-1" || s == "unlimited" {
		return math.MaxUint64, nil
	}
	return strconv.ParseUint(s, 10, 64)
}

// fillSysctls gives the pod its kernel parameters.
func (o *moreOptions) fillSysctls(pod *runtimeapi.PodSandboxConfig) error {
	for _, s := range settings(o.sysctls) {
		name, value, given := strings.Cut(s, "=")
		if name == "" || !given {
			return usagef("invalid --sysctl %q: expected NAME=VALUE", s)
		}
		if pod.Linux.Sysctls == nil {
			pod.Linux.Sysctls = map[string]string{}
		}
		pod.Linux.Sysctls[name] = value
	}
	return nil
}

// settings returns the settings of a flag whose values are lists of NAME=VALUE. What has no "="
// belongs to the value before it: ports, as of net.ipv4.ip_local_reserved_ports, are lists, too.
func settings(lists []string) (out []string) {
	for _, list := range lists {
		first := len(out)
		for s := range strings.SplitSeq(list, ",") {
			if len(out) > first && !strings.Contains(s, "=") {
				out[len(out)-1] += "," + s
				continue
			}
			out = append(out, s)
		}
	}
	return out
}

// fillDevices gives the container devices of the host, by path or by CDI.
func (o *moreOptions) fillDevices(ctr *runtimeapi.ContainerConfig) error {
	for _, d := range o.devices {
		if !strings.HasPrefix(d, "/") && strings.Contains(d, "=") {
			ctr.CDIDevices = append(ctr.CDIDevices, &runtimeapi.CDIDevice{Name: d})
			continue
		}
		parts := strings.Split(d, ":")
		dev := &runtimeapi.Device{HostPath: parts[0], ContainerPath: parts[0], Permissions: "rwm"}
		switch {
		case len(parts) == 2 && strings.Trim(parts[1], "rwm") == "":
			dev.Permissions = parts[1]
		case len(parts) == 2:
			dev.ContainerPath = parts[1]
		case len(parts) == 3:
			dev.ContainerPath, dev.Permissions = parts[1], parts[2]
		}
		if len(parts) > 3 || !strings.HasPrefix(dev.HostPath, "/") || !strings.HasPrefix(dev.ContainerPath, "/") || strings.Trim(dev.Permissions, "rwm") != "" {
			return usagef("invalid --device %q: expected /dev/NAME[:PATH[:rwm]] or VENDOR/CLASS=NAME", d)
		}
		if _, err := os.Stat(dev.HostPath); err != nil {
			return fmt.Errorf("--device %s: %w", d, err)
		}
		ctr.Devices = append(ctr.Devices, dev)
	}
	for _, list := range o.gpus {
		for name := range strings.SplitSeq(strings.TrimPrefix(list, "device="), ",") {
			if name == "" {
				return usagef("invalid --gpus %q: expected all, or the names of GPUs", list)
			}
			ctr.CDIDevices = append(ctr.CDIDevices, &runtimeapi.CDIDevice{Name: "nvidia.com/gpu=" + name})
		}
	}
	return nil
}
