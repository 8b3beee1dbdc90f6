package kube

import (
	"fmt"
	"time"
)

// problem describes what is invalid in a probe; "" for a valid one.
func (p *Probe) problem(c *Container) string {
	kinds := 0
	var port *PortOf
	if p.Exec != nil {
		kinds++
		if len(p.Exec.Command) == 0 {
			return "exec.command is empty"
		}
	}
	if p.HTTPGet != nil {
		kinds++
		port = &p.HTTPGet.Port
		if s := p.HTTPGet.Scheme; s != "" && s != "HTTP" && s != "HTTPS" {
			return fmt.Sprintf("httpGet.scheme: %q is not HTTP or HTTPS", s)
		}
	}
	if p.TCPSocket != nil {
		kinds++
		port = &p.TCPSocket.Port
	}
	if g := p.GRPC; g != nil {
		kinds++
		if g.Port < 1 || g.Port > 65535 {
			return fmt.Sprintf("grpc.port: %d is not between 1 and 65535", g.Port)
		}
	}
	if kinds != 1 {
		return "one of exec, httpGet, tcpSocket and grpc must be set"
	}
	if port != nil {
		if n := port.In(c); n < 1 || n > 65535 {
			return fmt.Sprintf("the container has no port %q, and %d is not between 1 and 65535", port.Name, port.Number)
		}
	}
	return ""
}

// problem describes what is invalid in a hook; "" for a valid one.
func (h *Hook) problem(c *Container) string {
	if h == nil {
		return ""
	}
	kinds := 0
	if h.Exec != nil {
		if kinds++; len(h.Exec.Command) == 0 {
			return "exec.command is empty"
		}
	}
	if h.Sleep != nil {
		kinds++
	}
	if g := h.HTTPGet; g != nil {
		kinds++
		if s := g.Scheme; s != "" && s != "HTTP" && s != "HTTPS" {
			return fmt.Sprintf("httpGet.scheme: %q is not HTTP or HTTPS", s)
		}
		if n := g.Port.In(c); n < 1 || n > 65535 {
			return fmt.Sprintf("the container has no port %q, and %d is not between 1 and 65535", g.Port.Name, g.Port.Number)
		}
	}
	switch {
	case h.TCPSocket != nil:
		return "tcpSocket is no hook: a cluster takes it, and fails to run it; use exec, httpGet or sleep"
	case kinds != 1:
		return "one of exec, httpGet and sleep must be set"
	}
	return ""
}

// seconds returns a duration of n seconds, or of otherwise if n is not set.
func seconds(n, otherwise int32) time.Duration {
	if n <= 0 {
		n = otherwise
	}
	return time.Duration(n) * time.Second
}

// The defaults below are those of the API (core/v1 Probe).

// Period returns the time between two probes.
func (p *Probe) Period() time.Duration { return seconds(p.PeriodSeconds, 10) }

// Timeout returns the timeout of one probe.
func (p *Probe) Timeout() time.Duration { return seconds(p.TimeoutSeconds, 1) }

// Failures returns the number of consecutive failures after which the probe has
// failed.
func (p *Probe) Failures() int32 {
	if p.FailureThreshold <= 0 {
		return 3
	}
	return p.FailureThreshold
}

// Successes returns the number of consecutive successes after which the probe has
// succeeded.
func (p *Probe) Successes() int32 { return max(p.SuccessThreshold, 1) }
