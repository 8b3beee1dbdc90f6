package bench

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// table is the page's: what each takes, and how many times the floor that is.
func (r *peersRun) table() string {
	var out strings.Builder
	fmt.Fprintf(&out, "%s, %d × %s, Linux %s. Medians of %d runs (podman %d), of %d pulls; in brackets the ratio to the floor.\n\n",
		r.Date, r.Cores, r.CPU, r.Kernel, r.Runs, max(r.Runs/2, 1), *peerPulls)
	r.heading(&out, "| | floor |", "|---|---|")
	floor := func(name string) time.Duration { return r.Floor.Took.at(name, .5) }
	for _, row := range []struct {
		name, floor, call string
		unit              time.Duration
	}{
		{"pod with one container up, ms", floorRun, up, time.Millisecond},
		{"of it RunPodSandbox", "", runPod, time.Millisecond},
		{"of it CreateContainer", "", create, time.Millisecond},
		{"of it StartContainer", "", start, time.Millisecond},
		{"exec of `true`, ms", floorExec, execSync, time.Millisecond},
		{"stop of the container, ms", "", stop, time.Millisecond},
		{"whole life of a pod, ms", "", whole, time.Millisecond},
		{"`run --rm true`, ms", floorTrue, runRemoved, time.Millisecond},
		{fmt.Sprintf("pull, %d MB, 7,200 files, s", r.Sizes[pullFiles]/1e6), untarFiles, pullFiles, time.Second},
		{fmt.Sprintf("pull, %d MB, incompressible, s", r.Sizes[pullRandom]/1e6), untarRandom, pullRandom, time.Second},
	} {
		base := time.Duration(0)
		words := ""
		if row.floor != "" {
			base = floor(row.floor)
			words = fmt.Sprintf("`%s` %s", strings.Split(row.floor, ",")[0], figure(base, row.unit))
		}
		fmt.Fprintf(&out, "| %s | %s |", row.name, words)
		for _, p := range r.Peers {
			fmt.Fprintf(&out, " %s |", cell(p.Took.at(row.call, .5), base, row.unit))
		}
		out.WriteString("\n")
	}
	fmt.Fprintf(&out, "| %d pods, %d at a time, s | |", r.Pods, r.Concurrency)
	r.cells(&out, func(p *peer) string { return cell(p.Many, 0, time.Second) })
	fmt.Fprintf(&out, "| memory of a pod without its workload, KiB PSS | |")
	r.cells(&out, func(p *peer) string { return fmt.Sprint(p.PodPSS) })
	fmt.Fprintf(&out, "| memory without pods, MiB PSS | |")
	r.cells(&out, func(p *peer) string { return fmt.Sprintf("%.1f", float64(p.Idle)/1024) })
	r.network(&out)
	r.density(&out)
	return out.String()
}

func (r *peersRun) heading(out *strings.Builder, begin, line string) {
	out.WriteString(begin)
	for _, p := range r.Peers {
		fmt.Fprintf(out, " %s |", p.Name)
		line += "---|"
	}
	fmt.Fprintf(out, "\n%s\n", line)
}

func (r *peersRun) cells(out *strings.Builder, of func(*peer) string) {
	for _, p := range r.Peers {
		fmt.Fprintf(out, " %s |", of(p))
	}
	out.WriteString("\n")
}

// network is one row for each way and quantity.
func (r *peersRun) network(out *strings.Builder) {
	loop := r.Floor.Ways[wayLoopback]
	for _, way := range []string{wayPods, wayOut, wayIn} {
		for _, q := range []struct {
			name, floor string
			of          func(wayTook) string
		}{
			{"Gbit/s", fmt.Sprintf("%.1f", loop.Gbits), func(w wayTook) string { return fmt.Sprintf("%.2f (%.2f)", w.Gbits, w.Gbits/loop.Gbits) }},
			{"the other direction, Gbit/s", fmt.Sprintf("%.1f", loop.Back), func(w wayTook) string { return fmt.Sprintf("%.2f (%.2f)", w.Back, w.Back/loop.Back) }},
			{"connect, round trip, µs", fmt.Sprintf("%d, %d", loop.Connect.Microseconds(), loop.Trip.Microseconds()),
				func(w wayTook) string { return fmt.Sprintf("%d, %d", w.Connect.Microseconds(), w.Trip.Microseconds()) }},
		} {
			fmt.Fprintf(out, "| %s, %s | loopback %s |", way, q.name, q.floor)
			r.cells(out, func(p *peer) string {
				w, ok := p.Ways[way]
				if !ok {
					return ""
				}
				return q.of(w)
			})
		}
	}
}

// ten is how many pods at the beginning and at the end are compared.
const ten = 10

// density is what many pods cost subpod. Those of others are too few to compare.
func (r *peersRun) density(out *strings.Builder) {
	all := r.Peers
	r.Peers = slices.DeleteFunc(slices.Clone(all), func(p *peer) bool { return len(p.Scale[restart]) == 0 })
	defer func() { r.Peers = all }()
	if len(r.Peers) == 0 {
		return
	}
	fmt.Fprintf(out, "\nWith %d pods running:\n\n", *peerScale)
	r.heading(out, "| |", "|---|")
	for _, name := range []string{runPod, create} {
		fmt.Fprintf(out, "| %s, first ten, last ten, ms; ratio |", name)
		r.cells(out, func(p *peer) string {
			first, last := edges(p.Scale[name])
			return fmt.Sprintf("%.1f, %.1f; %.2f", ms(first), ms(last), float64(last)/float64(first))
		})
	}
	for _, name := range []string{"ListPodSandbox", "ListContainers", "ListContainerStats"} {
		fmt.Fprintf(out, "| %s, median, p99, ms |", name)
		r.cells(out, func(p *peer) string {
			return fmt.Sprintf("%.1f, %.1f", ms(p.Scale.at(name, .5)), ms(p.Scale.at(name, .99)))
		})
	}
	fmt.Fprintf(out, "| %s, s |", restart)
	r.cells(out, func(p *peer) string { return figure(p.Scale.at(restart, .5), time.Second) })
	fmt.Fprintf(out, "| processor time with nothing to do, %% of a core |")
	r.cells(out, func(p *peer) string { return fmt.Sprintf("%.1f", 100*p.CPU) })
}

// edges returns the medians of the first ten and the last ten.
func edges(all []time.Duration) (first, last time.Duration) {
	if len(all) < ten {
		return 0, 0
	}
	return median(all[:ten]), median(all[len(all)-ten:])
}

func cell(took, base, unit time.Duration) string {
	switch {
	case took == 0:
		return ""
	case base == 0:
		return figure(took, unit)
	}
	return fmt.Sprintf("%s (%.2f)", figure(took, unit), float64(took)/float64(base))
}

func figure(d, unit time.Duration) string {
	if unit == time.Second {
		return fmt.Sprintf("%.2f", d.Seconds())
	}
	return fmt.Sprintf("%.1f", ms(d))
}
