package kube

import "math"

// timeProblems describes times that are negative or longer than the API allows.
func timeProblems(p *Pod, bad func(format string, args ...any)) {
	check := func(field string, seconds *int64) {
		if seconds != nil && (*seconds < 0 || *seconds > math.MaxInt32) {
			bad("%s: %d is not between 0 and %d seconds", field, *seconds, math.MaxInt32)
		}
	}
	check("spec.terminationGracePeriodSeconds", p.Spec.TerminationGracePeriodSeconds)
	check("spec.activeDeadlineSeconds", p.Spec.ActiveDeadlineSeconds)
	for _, list := range [][]Container{p.Spec.InitContainers, p.Spec.Containers} {
		for _, c := range list {
			if c.Lifecycle == nil {
				continue
			}
			for name, h := range map[string]*Hook{"postStart": c.Lifecycle.PostStart, "preStop": c.Lifecycle.PreStop} {
				if h != nil && h.Sleep != nil {
					check("container "+c.Name+": lifecycle."+name+".sleep.seconds", &h.Sleep.Seconds)
				}
			}
		}
	}
}
