package main

import (
	"encoding/json"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/subpod/subpod/pkg/api"
)

// healthOptions are the flags --health-*.
type healthOptions struct {
	command                        string
	interval, timeout, startPeriod string
	onFailure                      string
	retries                        int
	off                            bool
}

func (h *healthOptions) addFlags(f *pflag.FlagSet) {
	f.StringVar(&h.command, "health-cmd", "", "command that checks the container's health, for sh -c, or a JSON list; none for no check")
	f.StringVar(&h.interval, "health-interval", "30s", "time between two checks")
	f.StringVar(&h.timeout, "health-timeout", "30s", "time after which a check has failed")
	f.StringVar(&h.startPeriod, "health-start-period", "0s", "time in which failed checks do not count")
	f.IntVar(&h.retries, "health-retries", 3, "failed checks in a row that make the container unhealthy")
	f.StringVar(&h.onFailure, "health-on-failure", "none", "what becomes of an unhealthy container: none, kill, restart or stop")
	f.BoolVar(&h.off, "no-healthcheck", false, "do not check the container's health")
}

// parse returns the check that the flags ask for; nil for none.
func (h *healthOptions) parse() (*api.Health, error) {
	if h.command == "" || h.command == "none" || h.off {
		if h.onFailure != "none" {
			return nil, usagef("--health-on-failure needs --health-cmd")
		}
		return nil, nil
	}
	out := &api.Health{Retries: h.retries, OnFailure: h.onFailure}
	for _, d := range []struct {
		flag, text string
		least      time.Duration
		to         *time.Duration
	}{
		{"interval", h.interval, time.Second, &out.Interval}, {"timeout", h.timeout, time.Second, &out.Timeout}, {"start-period", h.startPeriod, 0, &out.StartPeriod},
	} {
		v, err := time.ParseDuration(d.text)
		if err != nil || v < d.least {
			return nil, usagef("invalid --health-%s %q: expected a duration of at least %v", d.flag, d.text, d.least)
		}
		*d.to = v
	}
	if h.retries < 1 {
		return nil, usagef("invalid --health-retries %d: expected at least 1", h.retries)
	}
	switch h.onFailure {
	case "none", "kill", "restart", "stop":
	default:
		return nil, usagef("invalid --health-on-failure %q: expected none, kill, restart or stop", h.onFailure)
	}
	text := strings.TrimPrefix(h.command, "CMD-SHELL ")
	if strings.HasPrefix(strings.TrimSpace(text), "[") {
		if err := json.Unmarshal([]byte(text), &out.Command); err != nil || len(out.Command) == 0 {
			return nil, usagef("invalid --health-cmd %q: it begins as a JSON list and is none", h.command)
		}
		switch out.Command[0] {
		case "CMD":
			out.Command = out.Command[1:]
		case "CMD-SHELL":
			out.Command = []string{"sh", "-c", strings.Join(out.Command[1:], " ")}
		}
	} else {
		out.Command = []string{"sh", "-c", text}
	}
	if len(out.Command) == 0 {
		return nil, usagef("invalid --health-cmd %q: it has no command", h.command)
	}
	return out, nil
}
