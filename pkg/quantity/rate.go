package quantity

import "fmt"

// Limits of a rate, in bits per second (k8s.io/kubernetes, pkg/util/bandwidth).
const (
	MinRate = 1e3
	MaxRate = 1e15
)

// ParseRate returns bits per second: "10M" is ten million. "" is 0, no limit.
func ParseRate(s string) (uint64, error) {
	if s == "" {
		return 0, nil
	}
	v, err := Parse(s)
	if err != nil {
		return 0, fmt.Errorf("rate %q is not a number of bits per second such as 10M", s)
	}
	if v < MinRate || v > MaxRate {
		return 0, fmt.Errorf("rate %q is not between 1k and 1P bits per second", s)
	}
	return uint64(v), nil
}
