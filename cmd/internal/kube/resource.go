package kube

import (
	"fmt"
	"math"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/pkg/quantity"
)

// value returns the limit or request of a container, in units of the divisor, rounded up.
// A limit that is not set is what the machine has.
func (r *ResourceRef) value(c *Container) (string, error) {
	kind, name, _ := strings.Cut(r.Resource, ".")
	var from map[string]quantity.Quantity
	switch kind {
	case "limits":
		from = c.Resources.Limits
	case "requests":
		from = c.Resources.Requests
	default:
		return "", fmt.Errorf("resourceFieldRef %q is not limits.… or requests.…", r.Resource)
	}
	q, ok := from[name]
	if limit, set := c.Resources.Limits[name]; !ok && kind == "requests" && set {
		q = limit
	}
	if q == 0 && kind == "limits" {
		q = machine(name)
	}
	divisor := r.Divisor
	if divisor == 0 {
		divisor = 1
	}
	return strconv.FormatInt(int64(math.Ceil(float64(q/divisor))), 10), nil
}

// machine returns what of a resource the machine has, 0 for others than processors and
// memory.
func machine(name string) quantity.Quantity {
	var info unix.Sysinfo_t
	switch {
	case name == "cpu":
		return quantity.Quantity(runtime.NumCPU())
	case name == "memory" && unix.Sysinfo(&info) == nil:
		return quantity.Quantity(info.Totalram) * quantity.Quantity(info.Unit)
	}
	return 0
}
