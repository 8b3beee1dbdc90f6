// Package kube converts Kubernetes manifests to CRI configurations, as a kubelet
// does. Apart from Pod.Prepare, which writes the volumes, it is pure.
package kube

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/subpod/subpod/pkg/quantity"
)

// MaskedPaths and ReadonlyPaths are those of a container with procMount Default. The
// kubelet sends them with each container (k8s.io/kubernetes pkg/securitycontext).
var (
	MaskedPaths = []string{
		"/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
		"/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
		"/sys/devices/virtual/powercap",
	}
	ReadonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

// ErrQuantity reports that a quantity cannot be parsed.
var ErrQuantity = quantity.ErrSyntax

var byteUnits = map[string]float64{
	"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40,
	"kb": 1 << 10, "mb": 1 << 20, "gb": 1 << 30, "tb": 1 << 40,
	"kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40,
}

// ParseBytes parses a size in the format of command lines: 512m, 1.5g. Units are
// powers of 1024. ErrQuantity.
func ParseBytes(s string) (int64, error) {
	i := strings.IndexFunc(s, func(r rune) bool { return (r < '0' || r > '9') && r != '.' })
	if i < 0 {
		i = len(s)
	}
	n, err := strconv.ParseFloat(s[:i], 64)
	unit, ok := byteUnits[strings.ToLower(strings.TrimSpace(s[i:]))]
	if err != nil || !ok || n*unit > math.MaxInt64/2 {
		return 0, fmt.Errorf("%w: %q", ErrQuantity, s)
	}
	return int64(n * unit), nil
}
