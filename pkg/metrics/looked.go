package metrics

import (
	"cmp"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"
)

// Sources are asked for what is looked at when metrics are asked for. All are needed.
type Sources struct {
	Pods func() []Pod
	// Processes counts the running processes of each program that helps the server,
	// Restarts how often those that must not end have ended by themselves.
	Processes func() map[string]int
	Restarts  func() map[string]uint64
	State     func() State
	// Uplink is what the node's way out has carried; false where it has none.
	Uplink func() (Traffic, bool)
}

// Pod is what is counted of a pod sandbox.
type Pod struct {
	Namespace, Name, State string
	Containers             []Container
}

// Container is what is counted of a container. Restarts are those of the supervisor.
type Container struct {
	Name, State string
	Restarts    uint64
}

// State is how the store of records is used.
type State struct {
	Writes, Commits, Failures uint64
	JournalBytes              int64
}

// Traffic is that of an interface, as the pods see it.
type Traffic struct{ Received, Sent Flow }

// Flow is one direction of it.
type Flow struct{ Bytes, Packets, Errors, Dropped uint64 }

const (
	// maxNamespaces and maxRestarting bound the series that users can make: namespaces
	// beyond are counted together, as otherNamespace, and of containers those count that
	// were restarted most.
	maxNamespaces  = 100
	maxRestarting  = 500
	otherNamespace = "(other)"
)

// looked collects what Sources say.
type looked struct{ s Sources }

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc(prefix+name, help, labels, nil)
}

// families are described when the first metrics are made, not when the program starts.
type families struct {
	pods, containers, restarts, processes, helperRestarts, writes, commits, journal, bytes, packets, errors, dropped, took *prometheus.Desc
}

func describe() families {
	return families{
		pods:           desc("pods", "Pod sandboxes, by state.", "namespace", "state"),
		containers:     desc("containers", "Containers, by state.", "namespace", "state"),
		restarts:       desc("container_restarts_total", "How often subpod has restarted a container (not: a kubelet).", "namespace", "pod", "container"),
		processes:      desc("helper_processes", "Running processes that help the server.", "program"),
		helperRestarts: desc("helper_restarts_total", "How often what must not end has ended by itself, and was started again, since the node was started.", "program"),
		writes:         desc("state_writes_total", "Changes of records."),
		commits:        desc("state_commits_total", "Transactions of the database, by result.", "result"),
		journal:        desc("state_journal_bytes", "Size of the journal: what the database does not hold yet."),
		bytes:          desc("uplink_bytes_total", "Bytes on the uplink, from the pods' side.", "direction"),
		packets:        desc("uplink_packets_total", "Packets on the uplink.", "direction"),
		errors:         desc("uplink_errors_total", "Packets on the uplink that were damaged.", "direction"),
		dropped:        desc("uplink_dropped_packets_total", "Packets that the uplink has dropped.", "direction"),
		took:           desc("collect_duration_seconds", "Time to look at what is not counted all along."),
	}
}

// Describe implements prometheus.Collector: an unchecked one, since pods come and go.
func (looked) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (l looked) Collect(out chan<- prometheus.Metric) {
	begin, f := time.Now(), describe()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		emit(out, d, prometheus.GaugeValue, v, labels)
	}
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		emit(out, d, prometheus.CounterValue, float64(v), labels)
	}
	pods := l.s.Pods()
	byState(pods, func(namespace, state string, pods, containers int) {
		if pods >= 0 {
			gauge(f.pods, float64(pods), namespace, state)
		}
		if containers >= 0 {
			gauge(f.containers, float64(containers), namespace, state)
		}
	})
	for _, r := range restarted(pods) {
		counter(f.restarts, r.Restarts, r.namespace, r.pod, r.Name)
	}
	for program, n := range l.s.Processes() {
		gauge(f.processes, float64(n), program)
	}
	for program, n := range l.s.Restarts() {
		counter(f.helperRestarts, n, program)
	}
	s := l.s.State()
	counter(f.writes, s.Writes)
	counter(f.commits, s.Commits-s.Failures, "ok")
	counter(f.commits, s.Failures, "failed")
	gauge(f.journal, float64(s.JournalBytes))
	if t, ok := l.s.Uplink(); ok {
		for direction, v := range map[string]Flow{"receive": t.Received, "send": t.Sent} {
			counter(f.bytes, v.Bytes, direction)
			counter(f.packets, v.Packets, direction)
			counter(f.errors, v.Errors, direction)
			counter(f.dropped, v.Dropped, direction)
		}
	}
	gauge(f.took, time.Since(begin).Seconds())
}

// emit leaves out what is no metric.
func emit(out chan<- prometheus.Metric, d *prometheus.Desc, kind prometheus.ValueType, v float64, labels []string) {
	if m, err := prometheus.NewConstMetric(d, kind, v, labels...); err == nil {
		out <- m
	}
}

// maxLabel bounds the value of a label, in bytes: names of the CRI have no bound.
const maxLabel = 253

// label makes a name of the CRI the value of a label: bounded, and nothing that controls a
// terminal or is no text.
func label(s string) string {
	end := ""
	if len(s) > maxLabel {
		s, end = strings.ToValidUTF8(s[:maxLabel], ""), "…"
	}
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return utf8.RuneError
		}
		return r
	}, s) + end
}

// byState counts pods and containers by namespace and state; -1 where there is none of a
// kind.
func byState(pods []Pod, each func(namespace, state string, pods, containers int)) {
	type key struct{ namespace, state string }
	size := map[string]int{}
	for _, p := range pods {
		size[label(p.Namespace)]++
	}
	names := make([]string, 0, len(size))
	for n := range size {
		names = append(names, n)
	}
	slices.SortFunc(names, func(a, b string) int { return cmp.Or(cmp.Compare(size[b], size[a]), cmp.Compare(a, b)) })
	for _, n := range names[min(len(names), maxNamespaces):] {
		delete(size, n)
	}
	count := map[key][2]int{}
	add := func(namespace, state string, kind int) {
		namespace = label(namespace)
		if size[namespace] == 0 {
			namespace = otherNamespace
		}
		c, ok := count[key{namespace, state}]
		if !ok {
			c = [2]int{-1, -1}
		}
		c[kind] = max(c[kind], 0) + 1
		count[key{namespace, state}] = c
	}
	for _, p := range pods {
		add(p.Namespace, p.State, 0)
		for _, c := range p.Containers {
			add(p.Namespace, c.State, 1)
		}
	}
	for k, c := range count {
		each(k.namespace, k.state, c[0], c[1])
	}
}

type restartedContainer struct {
	namespace, pod string
	Container
}

// restarted returns the containers that were restarted, most often first, no more than
// maxRestarting. Of containers with the same names the first one counts.
func restarted(pods []Pod) (all []restartedContainer) {
	seen := map[[3]string]bool{}
	for _, p := range pods {
		for _, c := range p.Containers {
			id := [3]string{label(p.Namespace), label(p.Name), label(c.Name)}
			if c.Restarts > 0 && !seen[id] {
				seen[id] = true
				all = append(all, restartedContainer{id[0], id[1], Container{Name: id[2], Restarts: c.Restarts}})
			}
		}
	}
	slices.SortStableFunc(all, func(a, b restartedContainer) int { return cmp.Compare(b.Restarts, a.Restarts) })
	return all[:min(len(all), maxRestarting)]
}
