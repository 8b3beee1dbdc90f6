package config

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/subpod/subpod/pkg/quantity"
)

// Duration is a time.Duration that TOML writes as a string such as "90s". A
// bare number is refused: it says no unit.
type Duration struct{ time.Duration }

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err != nil {
		return fmt.Errorf(`%q is not a duration such as "90s", "5m" or "4h"`, text)
	}
	d.Duration = v
	return nil
}

// Rate is a number of bits per second that TOML writes as a string such as "10M".
// The empty one is 0: no limit.
type Rate struct{ Bits uint64 }

// MarshalText implements encoding.TextMarshaler.
func (r Rate) MarshalText() ([]byte, error) {
	if r.Bits == 0 {
		return nil, nil
	}
	return strconv.AppendUint(nil, r.Bits, 10), nil
}

// UnmarshalText implements encoding.TextUnmarshaler.
func (r *Rate) UnmarshalText(text []byte) (err error) {
	r.Bits, err = quantity.ParseRate(string(text))
	return err
}

// Size is a number of bytes that TOML writes as a string such as "64Ki" or "1Gi".
type Size struct{ Bytes int64 }

// MarshalText implements encoding.TextMarshaler.
func (s Size) MarshalText() ([]byte, error) { return strconv.AppendInt(nil, s.Bytes, 10), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (s *Size) UnmarshalText(text []byte) error {
	v, err := quantity.Parse(string(text))
	if err != nil || v < 1 || v > 1<<60 {
		return fmt.Errorf(`%q is not a number of bytes such as "64Ki", "10M" or "1Gi"`, text)
	}
	s.Bytes = int64(v)
	return nil
}

// Bind makes a directory or file of the host appear at another place inside
// the node. TOML writes it as "SOURCE:TARGET" or "SOURCE:TARGET:ro".
type Bind struct {
	Source   string `path:"dir"`
	Target   string `path:"dir"`
	ReadOnly bool
}

// String returns the form that UnmarshalText reads.
func (b Bind) String() string {
	s := b.Source + ":" + b.Target
	if b.ReadOnly {
		s += ":ro"
	}
	return s
}

// MarshalText implements encoding.TextMarshaler.
func (b Bind) MarshalText() ([]byte, error) { return []byte(b.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (b *Bind) UnmarshalText(text []byte) error {
	parts := strings.Split(string(text), ":")
	if len(parts) == 3 && (parts[2] == "ro" || parts[2] == "rw") {
		b.ReadOnly = parts[2] == "ro"
		parts = parts[:2]
	} else {
		b.ReadOnly = false
	}
	if len(parts) != 2 || parts[0] == "" || parts[1] == "" {
		return fmt.Errorf(`%q is not of the form "SOURCE:TARGET" or "SOURCE:TARGET:ro"`, text)
	}
	b.Source, b.Target = parts[0], parts[1]
	return nil
}
