package workload

import (
	"errors"
	"fmt"
	"math"
	"time"
)

// ErrSpec says that a specification cannot be acted on.
var ErrSpec = errors.New("bad specification of a pod")

const (
	// maxTime bounds each time of a specification, as Kubernetes does, so that sums of
	// them are times, too.
	maxTime = math.MaxInt32 * time.Second
	// minPeriod is the least time between two probes.
	minPeriod = time.Second
)

// Check returns ErrSpec for what the supervisor cannot act on.
func (s *Spec) Check() error {
	if s == nil || len(s.Containers) == 0 {
		return fmt.Errorf("%w: it has no containers", ErrSpec)
	}
	b := s.Backoff
	if err := checkTimes(s.Deadline, s.Grace, b.First, b.Base, b.Max, b.Reset); err != nil {
		return fmt.Errorf("%w: %w", ErrSpec, err)
	}
	if b.Base == 0 || b.Max < b.Base || b.Reset == 0 {
		return fmt.Errorf("%w: nothing lies between restarts", ErrSpec)
	}
	names := map[string]bool{}
	mains := 0
	for i := range s.Containers {
		c := &s.Containers[i]
		if err := c.check(); err != nil {
			return fmt.Errorf("%w: container %q: %w", ErrSpec, c.Name, err)
		}
		if names[c.Name] {
			return fmt.Errorf("%w: two containers are named %q", ErrSpec, c.Name)
		}
		if names[c.Name] = true; c.Role == Main {
			mains++
		}
	}
	if mains == 0 {
		return fmt.Errorf("%w: it has no main container", ErrSpec)
	}
	return nil
}

func (c *Container) check() error {
	switch {
	case c.Name == "":
		return errors.New("it has no name")
	case c.Role != Init && c.Role != Sidecar && c.Role != Main:
		return fmt.Errorf("role %q is unknown", c.Role)
	}
	switch c.Restart.Name {
	case No, OnFailure, Always, UnlessStopped:
	default:
		return fmt.Errorf("restart policy %q: %w", c.Restart.Name, ErrPolicy)
	}
	return errors.Join(c.PostStart.check(), c.PreStop.check(), c.Startup.check(), c.Liveness.check(), c.Readiness.check())
}

func (h *Hook) check() error {
	if h == nil {
		return nil
	}
	if h.HTTP != nil {
		return errors.Join(checkTimes(h.Sleep), h.HTTP.check())
	}
	return checkTimes(h.Sleep)
}

func checkTimes(times ...time.Duration) error {
	for _, t := range times {
		if t < 0 || t > maxTime {
			return fmt.Errorf("the time %v is not between 0 and %v", t, maxTime)
		}
	}
	return nil
}

func (a Address) check() error {
	if a.Port < 1 || a.Port > 65535 {
		return fmt.Errorf("port %d of a probe or hook is not between 1 and 65535", a.Port)
	}
	return nil
}

func (p *Probe) check() error {
	if p == nil {
		return nil
	}
	kinds, addr := 0, Address{Port: 1}
	if len(p.Command) > 0 {
		kinds++
	}
	if p.HTTP != nil {
		kinds, addr = kinds+1, p.HTTP.Address
	}
	if p.TCP != nil {
		kinds, addr = kinds+1, *p.TCP
	}
	if p.GRPC != nil {
		kinds, addr = kinds+1, p.GRPC.Address
	}
	switch {
	case kinds != 1:
		return fmt.Errorf("a probe asks in %d ways, not in one", kinds)
	case p.Period < minPeriod || p.Timeout <= 0 || p.Successes <= 0 || p.Failures <= 0:
		return fmt.Errorf("a probe needs a period of at least %v, a timeout and thresholds above 0", minPeriod)
	}
	return errors.Join(checkTimes(p.Delay, p.Period, p.Timeout), addr.check())
}
