// Package metrics counts what the server does, and serves it to Prometheus. A nil *Metrics
// counts nothing: that is what a server without an endpoint has.
//
// Labels are names of methods, codes, programs and states, and of Kubernetes namespaces,
// pods and containers, these bounded in number. No image, command, variable or error text
// is a label.
package metrics

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
)

const prefix = "subpod_"

// Metrics are the counters of a server. Their methods may be called concurrently.
type Metrics struct {
	registry *prometheus.Registry

	requests    *prometheus.CounterVec
	latency     *prometheus.HistogramVec
	steps       *prometheus.HistogramVec
	pulls       *prometheus.CounterVec
	pullBytes   prometheus.Counter
	pullLatency prometheus.Histogram
}

// latencies are those of requests: from a status, which takes a fraction of a
// millisecond, to the time limits of a kubelet, in seconds.
var latencies = []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 120}

// New returns metrics of which those that are looked at when they are asked for come from
// s. causes are the values that Pull gets: they are there from the beginning.
func New(version string, s Sources, causes []string) *Metrics {
	m := &Metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: prefix + "rpc_requests_total", Help: "Requests that have ended, by gRPC code.",
		}, []string{"service", "method", "code"}),
		latency: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: prefix + "rpc_duration_seconds", Help: "Time to serve a request, but of those that wait for something to happen.", Buckets: latencies,
		}, []string{"service", "method"}),
		steps: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: prefix + "step_duration_seconds", Help: "Time of the steps of requests, as \"subpod system trace\" shows them.", Buckets: latencies,
		}, []string{"step"}),
		pulls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: prefix + "image_pulls_total", Help: "Pulls that have ended, by the cause of their failure; \"ok\" for those that succeeded.",
		}, []string{"result"}),
		pullBytes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: prefix + "image_pull_bytes_total", Help: "Bytes that pulls have downloaded.",
		}),
		pullLatency: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: prefix + "image_pull_duration_seconds", Help: "Time of pulls.", Buckets: []float64{.1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900},
		}),
	}
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: prefix + "build_info", Help: "The version that serves.", ConstLabels: prometheus.Labels{"version": version},
	})
	build.Set(1)
	for _, c := range append([]string{pullOK}, causes...) {
		m.pulls.WithLabelValues(c)
	}
	m.registry.MustRegister(m.requests, m.latency, m.steps, m.pulls, m.pullBytes, m.pullLatency, build,
		&looked{s: s}, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

const pullOK = "ok"

// Request counts a request that has ended. waiting says that its time says nothing.
func (m *Metrics) Request(service, method, code string, took time.Duration, waiting bool) {
	if m == nil {
		return
	}
	m.requests.WithLabelValues(service, method, code).Inc()
	if !waiting {
		m.latency.WithLabelValues(service, method).Observe(took.Seconds())
	}
}

// Step counts a step of a request.
func (m *Metrics) Step(name string, took time.Duration) {
	if m != nil {
		m.steps.WithLabelValues(name).Observe(took.Seconds())
	}
}

// Pull counts a pull that has ended. cause is "" for success.
func (m *Metrics) Pull(cause string, bytes int64, took time.Duration) {
	if m == nil {
		return
	}
	if cause == "" {
		cause = pullOK
	}
	m.pulls.WithLabelValues(cause).Inc()
	m.pullBytes.Add(float64(bytes))
	m.pullLatency.Observe(took.Seconds())
}
