package workload

import (
	"errors"
	"math"
	"testing"
	"time"
)

func TestParsePolicy(t *testing.T) {
	for text, want := range map[string]Policy{
		"": {Name: No}, "no": {Name: No}, "always": {Name: Always}, "unless-stopped": {Name: UnlessStopped},
		"on-failure": {Name: OnFailure}, "on-failure:0": {Name: OnFailure}, "on-failure:5": {Name: OnFailure, Max: 5},
	} {
		if got, err := ParsePolicy(text); err != nil || got != want {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{"nosuch", "never:1", "Always", "on-failure:", "on-failure:-1", "on-failure:x", "always:3", "no:1", "on-failure:99999999999"} {
		if got, err := ParsePolicy(text); !errors.Is(err, ErrPolicy) {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
}

// TestCheck: what the supervisor cannot act on is refused.
func TestCheck(t *testing.T) {
	probe := Probe{TCP: &Address{Port: 80}, Period: time.Second, Timeout: time.Second, Successes: 1, Failures: 3}
	spec := func(change func(c *Container)) *Spec {
		c := Container{Name: "c", Role: Main, Restart: Policy{Name: Always}}
		change(&c)
		return &Spec{Containers: []Container{c}, Backoff: PlayBackoff}
	}
	if err := spec(func(c *Container) { p := probe; c.Liveness = &p }).Check(); err != nil {
		t.Error(err)
	}
	backoff := func(change func(*Backoff)) *Spec {
		s := spec(func(*Container) {})
		change(&s.Backoff)
		return s
	}
	twice := spec(func(*Container) {})
	twice.Containers = append(twice.Containers, twice.Containers[0])
	for name, s := range map[string]*Spec{
		"nil":           nil,
		"empty":         {},
		"no backoff":    {Containers: []Container{{Name: "c", Role: Main, Restart: Policy{Name: Always}}}},
		"two of a name": twice,
		"no main":       spec(func(c *Container) { c.Role = Init }),
		"role":          spec(func(c *Container) { c.Role = "x" }),
		"policy":        spec(func(c *Container) { c.Restart.Name = "" }),
		"no name":       spec(func(c *Container) { c.Name = "" }),
		"empty probe":   spec(func(c *Container) { p := probe; p.TCP = nil; c.Liveness = &p }),
		"two probes":    spec(func(c *Container) { p := probe; p.HTTP = &HTTP{}; c.Startup = &p }),
		"no period":     spec(func(c *Container) { p := probe; p.Period = 0; c.Readiness = &p }),
		"no reset":      backoff(func(b *Backoff) { b.Reset = 0 }),
		"endless pause": backoff(func(b *Backoff) { b.Max = math.MaxInt64 }),
		"endless sleep": spec(func(c *Container) { c.PostStart = &Hook{Sleep: math.MaxInt64} }),
		"endless delay": spec(func(c *Container) { p := probe; p.Delay = math.MaxInt64; c.Liveness = &p }),
		"busy":          spec(func(c *Container) { p := probe; p.Period = time.Millisecond; c.Readiness = &p }),
		"port":          spec(func(c *Container) { p := probe; p.TCP = &Address{Port: 65536}; c.Readiness = &p }),
		"no failures":   spec(func(c *Container) { p := probe; p.Failures = 0; c.Readiness = &p }),
	} {
		if err := s.Check(); !errors.Is(err, ErrSpec) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
