package metrics_test

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"

	"github.com/subpod/subpod/pkg/metrics"
)

// fake are sources whose values a test sets.
type fake struct {
	pods    []metrics.Pod
	state   metrics.State
	traffic metrics.Traffic
	helpers map[string]int
	again   map[string]uint64
	uplink  bool
}

func (f *fake) sources() metrics.Sources {
	return metrics.Sources{
		Pods:      func() []metrics.Pod { return f.pods },
		Processes: func() map[string]int { return f.helpers },
		Restarts:  func() map[string]uint64 { return f.again },
		State:     func() metrics.State { return f.state },
		Uplink:    func() (metrics.Traffic, bool) { return f.traffic, f.uplink },
	}
}

// scrape returns the values of all series, by name and labels as Prometheus writes them,
// and the names of the families.
func scrape(t *testing.T, m *metrics.Metrics) (values map[string]float64, families map[string]bool) {
	t.Helper()
	w := httptest.NewRecorder()
	m.Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, metrics.Path, nil))
	if w.Code != http.StatusOK {
		t.Fatalf("status %d: %s", w.Code, w.Body)
	}
	text := w.Body.String()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	all, err := parser.TextToMetricFamilies(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	values, families = map[string]float64{}, map[string]bool{}
	for name, f := range all {
		families[name] = true
		if f.GetHelp() == "" {
			t.Errorf("%s has no help", name)
		}
	}
	for line := range strings.Lines(text) {
		if at := strings.LastIndex(line, " "); at > 0 && line[0] != '#' {
			var v float64
			if _, err := fmt.Sscan(line[at+1:], &v); err != nil {
				t.Fatalf("line %q: %v", line, err)
			}
			values[line[:at]] = v
		}
	}
	return values, families
}

// TestFamilies: each family changes with what it counts, and with nothing else.
func TestFamilies(t *testing.T) {
	f := &fake{helpers: map[string]int{"conmon": 0}, again: map[string]uint64{"server": 0}, uplink: true}
	m := metrics.New("1.2.3", f.sources(), []string{"unavailable"})
	for name, c := range map[string]struct {
		change func()
		series map[string]float64 // and by how much it grows
	}{
		"request": {func() { m.Request("s", "RunPodSandbox", "OK", time.Second, false) }, map[string]float64{
			`subpod_rpc_requests_total{code="OK",method="RunPodSandbox",service="s"}`:          1,
			`subpod_rpc_duration_seconds_sum{method="RunPodSandbox",service="s"}`:              1,
			`subpod_rpc_duration_seconds_bucket{method="RunPodSandbox",service="s",le="1"}`:    1,
			`subpod_rpc_duration_seconds_bucket{method="RunPodSandbox",service="s",le="0.5"}`:  0,
			`subpod_rpc_requests_total{code="Unavailable",method="RunPodSandbox",service="s"}`: 0,
			`subpod_rpc_requests_total{code="OK",method="StartContainer",service="s"}`:         0,
			`subpod_rpc_duration_seconds_bucket{method="RunPodSandbox",service="s",le="+Inf"}`: 1,
		}},
		"waiting request": {func() { m.Request("s", "Wait", "OK", time.Hour, true) }, map[string]float64{
			`subpod_rpc_requests_total{code="OK",method="Wait",service="s"}`: 1,
			`subpod_rpc_duration_seconds_count{method="Wait",service="s"}`:   0,
		}},
		"step": {func() { m.Step("network", time.Second) }, map[string]float64{`subpod_step_duration_seconds_count{step="network"}`: 1}},
		"pull": {func() { m.Pull("", 1000, time.Second) }, map[string]float64{
			`subpod_image_pulls_total{result="ok"}`: 1, `subpod_image_pulls_total{result="unavailable"}`: 0,
			`subpod_image_pull_bytes_total`: 1000, `subpod_image_pull_duration_seconds_sum`: 1,
		}},
		"failed pull": {func() { m.Pull("unavailable", 7, time.Second) }, map[string]float64{
			`subpod_image_pulls_total{result="ok"}`: 0, `subpod_image_pulls_total{result="unavailable"}`: 1, `subpod_image_pull_bytes_total`: 7,
		}},
		"pod": {func() {
			f.pods = append(f.pods, metrics.Pod{Namespace: "a", Name: "p", State: "ready", Containers: []metrics.Container{{Name: "c", State: "running", Restarts: 2}, {Name: "d", State: "exited"}}})
		}, map[string]float64{
			`subpod_pods{namespace="a",state="ready"}`: 1, `subpod_containers{namespace="a",state="running"}`: 1, `subpod_containers{namespace="a",state="exited"}`: 1,
			`subpod_container_restarts_total{container="c",namespace="a",pod="p"}`: 2, `subpod_container_restarts_total{container="d",namespace="a",pod="p"}`: 0,
		}},
		"helper":         {func() { f.helpers["conmon"]++ }, map[string]float64{`subpod_helper_processes{program="conmon"}`: 1}},
		"helper restart": {func() { f.again["server"]++ }, map[string]float64{`subpod_helper_restarts_total{program="server"}`: 1}},
		"state": {func() { f.state = metrics.State{Writes: 5, Commits: 3, Failures: 1, JournalBytes: 99} }, map[string]float64{
			`subpod_state_writes_total`: 5, `subpod_state_commits_total{result="ok"}`: 2, `subpod_state_commits_total{result="failed"}`: 1, `subpod_state_journal_bytes`: 99,
		}},
		"uplink": {func() {
			f.traffic = metrics.Traffic{Received: metrics.Flow{Bytes: 1, Packets: 2, Errors: 3, Dropped: 4}, Sent: metrics.Flow{Bytes: 5, Packets: 6, Errors: 7, Dropped: 8}}
		}, map[string]float64{
			`subpod_uplink_bytes_total{direction="receive"}`: 1, `subpod_uplink_packets_total{direction="receive"}`: 2, `subpod_uplink_errors_total{direction="receive"}`: 3, `subpod_uplink_dropped_packets_total{direction="receive"}`: 4,
			`subpod_uplink_bytes_total{direction="send"}`: 5, `subpod_uplink_packets_total{direction="send"}`: 6, `subpod_uplink_errors_total{direction="send"}`: 7, `subpod_uplink_dropped_packets_total{direction="send"}`: 8,
		}},
	} {
		before, _ := scrape(t, m)
		c.change()
		after, _ := scrape(t, m)
		for s, grows := range c.series {
			if got := after[s] - before[s]; got != grows {
				t.Errorf("%s: %s grows by %v, want %v", name, s, got, grows)
			}
		}
		for s, v := range after {
			if _, named := c.series[s]; !named && strings.HasPrefix(s, "subpod_") && v != before[s] &&
				!strings.Contains(s, "_bucket{") && !strings.Contains(s, "_count") && !strings.Contains(s, "_sum") && !strings.HasPrefix(s, "subpod_collect_") {
				t.Errorf("%s: %s changes, too: %v, %v", name, s, before[s], v)
			}
		}
	}
	f.uplink = false
	if v, families := scrape(t, m); v[`subpod_build_info{version="1.2.3"}`] != 1 || families["subpod_uplink_bytes_total"] || !families["process_resident_memory_bytes"] || !families["go_goroutines"] {
		t.Errorf("families: %v", families)
	}
}

// TestBounds: names that users choose make no more than so many series, and none that
// cannot be read.
func TestBounds(t *testing.T) {
	f := &fake{}
	for i := range 3000 {
		name := strings.Repeat("é", 1000) + fmt.Sprint(i)
		f.pods = append(f.pods,
			metrics.Pod{Namespace: fmt.Sprint("ns", i), Name: fmt.Sprint("p", i), State: "ready", Containers: []metrics.Container{{Name: "c", State: "running", Restarts: uint64(i)}}},
			metrics.Pod{Namespace: "long", Name: name, State: "ready", Containers: []metrics.Container{{Name: "a\xffb\n\"", State: "running", Restarts: 1e6}}})
	}
	values, _ := scrape(t, metrics.New("v", f.sources(), nil))
	count, total := map[string]int{}, 0.0
	for s, v := range values {
		if name, _, _ := strings.Cut(s, "{"); strings.HasPrefix(name, "subpod_") {
			count[name]++
			if name == "subpod_pods" {
				total += v
			}
		}
		if len(s) > 1000 {
			t.Errorf("a series of %d bytes", len(s))
		}
	}
	if count["subpod_pods"] > 101 || count["subpod_containers"] > 101 || count["subpod_container_restarts_total"] > 500 || total != 6000 {
		t.Errorf("%v, %v pods", count, total)
	}
	if values[`subpod_pods{namespace="long",state="ready"}`] != 3000 || values[`subpod_pods{namespace="(other)",state="ready"}`] != 2901 ||
		values[`subpod_container_restarts_total{container="c",namespace="ns2999",pod="p2999"}`] != 2999 {
		t.Errorf("the largest are not there: %v", count)
	}
}

// TestLabels: names that control terminals, or are no text, are shown without that, and
// counted.
func TestLabels(t *testing.T) {
	const bad = "a\x1b]0;x\a\xff\u202e\n"
	f := &fake{pods: []metrics.Pod{{Namespace: bad, Name: bad, State: "ready", Containers: []metrics.Container{{Name: bad, State: "running", Restarts: 1}}}}}
	values, _ := scrape(t, metrics.New("v", f.sources(), nil))
	for _, series := range []string{
		`subpod_pods{namespace="N",state="ready"}`, `subpod_containers{namespace="N",state="running"}`,
		`subpod_container_restarts_total{container="N",namespace="N",pod="N"}`,
	} {
		if name := strings.ReplaceAll(series, "N", "a\ufffd]0;x\ufffd\ufffd\ufffd\ufffd"); values[name] != 1 {
			t.Errorf("%q is not there: %q", name, slices.DeleteFunc(slices.Sorted(maps.Keys(values)), func(s string) bool { return !strings.Contains(s, "]0;") }))
		}
	}
}

// TestNil: who counts nothing may be asked to.
func TestNil(t *testing.T) {
	var m *metrics.Metrics
	m.Request("", "", "", 0, false)
	m.Step("", 0)
	m.Pull("", 0, 0)
}

// TestServe: on a socket, only Path, and no longer than the server lives.
func TestServe(t *testing.T) {
	m := metrics.New("v", (&fake{}).sources(), nil)
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- m.Serve(t.Context(), l, log.Default()) }()
	client := http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", path)
	}}}
	for path, want := range map[string]int{metrics.Path: 200, "/": 404, "/debug/vars": 404, "/debug/pprof/": 404} {
		resp, err := client.Get("http://x" + path)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("%s: %d, want %d", path, resp.StatusCode, want)
		}
	}
	resp, err := client.Post("http://x"+metrics.Path, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("POST: %d", resp.StatusCode)
	}
	l.Close()
	if err := <-done; err == nil {
		t.Error("a listener that was closed by others is no error")
	}
}

// TestDashboard: each metric that the dashboard names exists.
func TestDashboard(t *testing.T) {
	_, families := scrape(t, everything())
	text, err := os.ReadFile("../../configs/dashboard.json")
	if err != nil {
		t.Fatal(err)
	}
	var board struct {
		Title  string
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(text, &board); err != nil || board.Title == "" {
		t.Fatalf("%v: %+v", err, board)
	}
	named, name := 0, regexp.MustCompile(`\b(subpod|process|go)_[a-z_]+`)
	for _, p := range board.Panels {
		if p.Title == "" || len(p.Targets) == 0 {
			t.Errorf("panel %+v shows nothing", p)
		}
		for _, target := range p.Targets {
			for _, n := range name.FindAllString(target.Expr, -1) {
				named++
				base := regexp.MustCompile(`_(bucket|sum|count)$`).ReplaceAllString(n, "")
				if !families[n] && !families[base] {
					t.Errorf("panel %q: there is no metric %s", p.Title, n)
				}
			}
		}
	}
	// What is counted is shown.
	for f := range families {
		if strings.HasPrefix(f, "subpod_") && !strings.Contains(string(text), f) && f != "subpod_collect_duration_seconds" && f != "subpod_uplink_errors_total" && f != "subpod_uplink_packets_total" && f != "subpod_state_writes_total" {
			t.Errorf("the dashboard does not show %s", f)
		}
	}
	if named < 20 {
		t.Errorf("the dashboard names %d metrics: the search is wrong", named)
	}
}
