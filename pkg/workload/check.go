package workload

import (
	"errors"
	"fmt"
)

// ErrSpec says that a specification cannot be acted on.
var ErrSpec = errors.New("bad specification of a pod")

// Check returns ErrSpec for what the supervisor cannot act on.
func (s *Spec) Check() error {
	if s == nil || len(s.Containers) == 0 {
		return fmt.Errorf("%w: it has no containers", ErrSpec)
	}
	if s.Deadline < 0 || s.Grace < 0 || s.Backoff.First < 0 || s.Backoff.Base <= 0 || s.Backoff.Max < s.Backoff.Base {
		return fmt.Errorf("%w: a time is negative, or nothing lies between restarts", ErrSpec)
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
	return errors.Join(c.Startup.check(), c.Liveness.check(), c.Readiness.check())
}

func (p *Probe) check() error {
	if p == nil {
		return nil
	}
	kinds := 0
	for _, set := range []bool{len(p.Command) > 0, p.HTTP != nil, p.TCP != nil, p.GRPC != nil} {
		if set {
			kinds++
		}
	}
	switch {
	case kinds != 1:
		return fmt.Errorf("a probe asks in %d ways, not in one", kinds)
	case p.Period <= 0 || p.Timeout <= 0 || p.Successes <= 0 || p.Failures <= 0 || p.Delay < 0:
		return errors.New("a probe needs a period, a timeout and thresholds above 0")
	}
	return nil
}
