package kube

import (
	"encoding/json"
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Quantity is a resource.Quantity: "500m", "1Gi", 2.
type Quantity float64

var suffixes = map[string]float64{
	"": 1, "n": 1e-9, "u": 1e-6, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18,
	"Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40, "Pi": 1 << 50, "Ei": 1 << 60,
}

// ParseQuantity parses a quantity. ErrQuantity.
func ParseQuantity(s string) (Quantity, error) {
	i := strings.LastIndexAny(s, "0123456789.") + 1
	number, suffix := s[:i], s[i:]
	factor, ok := suffixes[suffix]
	v, err := strconv.ParseFloat(number, 64)
	if !ok || err != nil || v < 0 || math.IsInf(v, 0) || math.IsNaN(v) || strings.ContainsAny(number, "xXpP_") {
		return 0, fmt.Errorf("%w: %q", ErrQuantity, s)
	}
	return Quantity(v * factor), nil
}

// UnmarshalJSON implements json.Unmarshaler.
func (q *Quantity) UnmarshalJSON(text []byte) error {
	s := string(text)
	if len(text) > 0 && text[0] == '"' {
		if err := json.Unmarshal(text, &s); err != nil {
			return err
		}
	}
	v, err := ParseQuantity(s)
	*q = v
	return err
}

// PortOf is an IntOrString: the number or the name of a port.
type PortOf struct {
	Number int32
	Name   string
}

// UnmarshalJSON implements json.Unmarshaler.
func (p *PortOf) UnmarshalJSON(text []byte) error {
	if len(text) > 0 && text[0] == '"' {
		if err := json.Unmarshal(text, &p.Name); err != nil {
			return err
		}
		if n, err := strconv.Atoi(p.Name); err == nil {
			p.Number, p.Name = int32(n), ""
		}
		return nil
	}
	return json.Unmarshal(text, &p.Number)
}

// In returns the number of the port in a container, 0 if it has no port of that
// name.
func (p PortOf) In(c *Container) int32 {
	if p.Name == "" {
		return p.Number
	}
	for _, port := range c.Ports {
		if port.Name == p.Name {
			return port.ContainerPort
		}
	}
	return 0
}
