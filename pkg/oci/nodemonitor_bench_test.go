package oci

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"
)

// BenchmarkMonitors compares the monitors in alternating runs: what a creation and start
// take, and the same container with 2,000,000 short lines, and with a line of 200 MB.
// Ratios are of the node's monitor to conmon; below 1 it is faster.
func BenchmarkMonitors(b *testing.B) {
	for what, args := range map[string][]string{
		"start": {"/bin/sleep", "1000"},
		"lines": sh("yes 'a line of a log' | head -n 2000000"),
		"line":  sh("head -c 200000000 /dev/zero"),
	} {
		b.Run(what, func(b *testing.B) { benchmarkMonitors(b, what, args) })
	}
}

func benchmarkMonitors(b *testing.B, what string, args []string) {
	took := durations{}
	executors := map[string]*Executor{}
	for _, kind := range []string{MonitorConmon, MonitorNode} {
		executors[kind] = executorWith(b, kind)
	}
	for b.Loop() {
		for kind, e := range executors {
			if err := took.monitor(b, e, kind, what, args); err != nil {
				b.Fatal(err)
			}
		}
	}
	median := func(name string) float64 {
		all := took[name]
		slices.Sort(all)
		return all[len(all)/2].Seconds()
	}
	b.ReportMetric(median(what+MonitorNode)/median(what+MonitorConmon), "ratio")
	b.ReportMetric(1000*median(what+MonitorConmon), "conmon-ms")
	b.ReportMetric(0, "ns/op") // means nothing here
}

// monitor measures one container.
func (d durations) monitor(b *testing.B, e *Executor, kind, what string, args []string) error {
	begin := time.Now()
	box, err := tryCreate(b, e, container{args: args})
	if err != nil {
		return err
	}
	defer func() { _ = e.Delete(context.Background(), box.id, box.ctr) }()
	box.start()
	if what == "start" {
		d[what+kind] = append(d[what+kind], time.Since(begin))
		return nil
	}
	begin = time.Now()
	if x := box.wait(); x.Code != 0 {
		return fmt.Errorf("exit %+v", x)
	}
	d[what+kind] = append(d[what+kind], time.Since(begin))
	return nil
}
