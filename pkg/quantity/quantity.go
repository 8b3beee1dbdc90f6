// Package quantity reads quantities as Kubernetes writes them: resources such as "500m"
// or "1Gi", the data rates of the annotations kubernetes.io/ingress-bandwidth and
// kubernetes.io/egress-bandwidth, and times in seconds.
package quantity

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// ErrSyntax reports that a text is not a quantity such as 500m, 2 or 1Gi.
var ErrSyntax = errors.New("invalid quantity")

// Quantity is a resource.Quantity: "500m", "1Gi", 2.
type Quantity float64

var suffixes = map[string]float64{
	"": 1, "n": 1e-9, "u": 1e-6, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18,
	"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40, "Pi": 1 << 50, "Ei": 1 << 60,
}

// Parse reads a quantity. ErrSyntax.
func Parse(s string) (Quantity, error) {
	i := strings.LastIndexAny(s, "0123456789.") + 1
	number, suffix := s[:i], s[i:]
	factor, ok := suffixes[suffix]
	v, err := strconv.ParseFloat(number, 64)
	v *= factor
	if !ok || err != nil || v < 0 || math.IsInf(v, 0) || math.IsNaN(v) || strings.ContainsAny(number, "xXpP_") {
		return 0, fmt.Errorf("%w: %q", ErrSyntax, s)
	}
	return Quantity(v), nil
}

// UnmarshalJSON implements json.Unmarshaler.
func (q *Quantity) UnmarshalJSON(text []byte) error {
	s := string(text)
	if len(text) > 0 && text[0] == '"' {
		if err := json.Unmarshal(text, &s); err != nil {
			return err
		}
	}
	v, err := Parse(s)
	*q = v
	return err
}
