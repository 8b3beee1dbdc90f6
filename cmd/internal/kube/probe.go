package kube

import (
	"fmt"
	"time"
)

// problem says what is wrong with a probe; "" if nothing is.
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
	if kinds != 1 {
		return "one of exec, httpGet and tcpSocket must be set"
	}
	if port != nil {
		if n := port.In(c); n < 1 || n > 65535 {
			return fmt.Sprintf("the port %q %d is none of the container's", port.Name, port.Number)
		}
	}
	return ""
}

// seconds with a default.
func seconds(n, otherwise int32) time.Duration {
	if n <= 0 {
		n = otherwise
	}
	return time.Duration(n) * time.Second
}

// The defaults are those of the API (core/v1 Probe).

// Period between two tries.
func (p *Probe) Period() time.Duration { return seconds(p.PeriodSeconds, 10) }

// Timeout of one try.
func (p *Probe) Timeout() time.Duration { return seconds(p.TimeoutSeconds, 1) }

// Failures in a row that count as failed.
func (p *Probe) Failures() int32 {
	if p.FailureThreshold <= 0 {
		return 3
	}
	return p.FailureThreshold
}

// Successes in a row that count as good.
func (p *Probe) Successes() int32 { return max(p.SuccessThreshold, 1) }
