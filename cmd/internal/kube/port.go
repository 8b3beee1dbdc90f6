package kube

import (
	"encoding/json"
	"strconv"
)

// PortOf is an IntOrString: a port, or the name of one.
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

// In returns the number of the port in a container; 0 where it has none of that
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
