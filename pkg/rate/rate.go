// Package rate reads data rates as Kubernetes writes them in the annotations
// kubernetes.io/ingress-bandwidth and kubernetes.io/egress-bandwidth.
package rate

import (
	"fmt"
	"strconv"
	"strings"
)

// Limits of a rate, in bits per second (k8s.io/kubernetes, pkg/util/bandwidth).
const (
	Min = 1e3
	Max = 1e15
)

// suffixes of a quantity (k8s.io/apimachinery, pkg/api/resource), the longer first.
var suffixes = []struct {
	name   string
	factor float64
}{
	{"Ki", 1 << 10}, {"Mi", 1 << 20}, {"Gi", 1 << 30}, {"Ti", 1 << 40}, {"Pi", 1 << 50},
	{"k", 1e3}, {"M", 1e6}, {"G", 1e9}, {"T", 1e12}, {"P", 1e15},
}

// Parse returns bits per second: "10M" is ten million. "" is 0, no limit.
func Parse(s string) (uint64, error) {
	if s == "" {
		return 0, nil
	}
	number, factor := s, 1.0
	for _, x := range suffixes {
		if n, ok := strings.CutSuffix(s, x.name); ok {
			number, factor = n, x.factor
			break
		}
	}
	v, err := strconv.ParseFloat(number, 64)
	if err != nil || strings.ContainsAny(number, "xXpPiInN_") {
		return 0, fmt.Errorf("rate %q is not a number of bits per second such as 10M", s)
	}
	if v *= factor; v < Min || v > Max {
		return 0, fmt.Errorf("rate %q is not between 1k and 1P bits per second", s)
	}
	return uint64(v), nil
}
