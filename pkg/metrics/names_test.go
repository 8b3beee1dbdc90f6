package metrics_test

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"

	"github.com/subpod/subpod/pkg/metrics"
)

// everything returns metrics with a series of each family.
func everything() *metrics.Metrics {
	f := &fake{
		pods:    []metrics.Pod{{Namespace: "a", Name: "p", State: "ready", Containers: []metrics.Container{{Name: "c", State: "running", Restarts: 1}}}},
		helpers: map[string]int{"conmon": 1}, again: map[string]uint64{"server": 1}, uplink: true,
	}
	m := metrics.New("v", f.sources(), []string{"unavailable"})
	m.Request("s", "m", "OK", time.Second, false)
	m.Step("s", time.Second)
	return m
}

// TestNames: names are as Prometheus wants them: what "promtool check metrics" says.
func TestNames(t *testing.T) {
	w := httptest.NewRecorder()
	everything().Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, metrics.Path, nil))
	problems, err := promlint.New(w.Body).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		if strings.HasPrefix(p.Metric, "subpod_") {
			t.Errorf("%s: %s", p.Metric, p.Text)
		}
	}
}

// labelsOf returns the labels of each subpod family that everything has, but the bounds of
// buckets.
func labelsOf(t *testing.T) map[string][]string {
	t.Helper()
	values, _ := scrape(t, everything())
	labels := map[string][]string{}
	for series := range values {
		name, rest, _ := strings.Cut(series, "{")
		if !strings.HasPrefix(name, "subpod_") {
			continue
		}
		labels[name] = append(labels[name], "instance", "le") // Prometheus' own, and those of buckets
		for _, l := range regexp.MustCompile(`(\w+)="`).FindAllStringSubmatch(rest, -1) {
			labels[name] = append(labels[name], l[1])
		}
	}
	return labels
}

// TestDashboardLabels: what the dashboard groups by, chooses by and shows are labels of the
// metric that it asks for.
func TestDashboardLabels(t *testing.T) {
	text, err := os.ReadFile("../../configs/dashboard.json")
	if err != nil {
		t.Fatal(err)
	}
	var board struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr, LegendFormat string }
		}
	}
	if err := json.Unmarshal(text, &board); err != nil {
		t.Fatal(err)
	}
	labels, looked := labelsOf(t), 0
	metric, by := regexp.MustCompile(`\bsubpod_\w+`), regexp.MustCompile(`\bby \(([^)]*)\)`)
	chosen, shown := regexp.MustCompile(`(\w+)(?:=|!=|=~|!~)"`), regexp.MustCompile(`\{\{(\w+)\}\}`)
	for _, p := range board.Panels {
		for _, target := range p.Targets {
			var groups []string
			if list := by.FindStringSubmatch(target.Expr); list != nil {
				groups = strings.Split(list[1], ", ")
			}
			named := slices.Clone(groups)
			for _, l := range shown.FindAllStringSubmatch(target.LegendFormat, -1) {
				named = append(named, l[1])
				if groups != nil && !slices.Contains(groups, l[1]) {
					t.Errorf("panel %q shows %s, by which it does not group", p.Title, l[1])
				}
			}
			for _, l := range chosen.FindAllStringSubmatch(target.Expr, -1) {
				named = append(named, l[1])
			}
			for _, m := range metric.FindAllString(target.Expr, -1) {
				for _, l := range named {
					looked++
					if !slices.Contains(labels[m], l) {
						t.Errorf("panel %q: %s has no label %s", p.Title, m, l)
					}
				}
			}
		}
	}
	if looked < 40 {
		t.Errorf("only %d labels were looked at: the search is wrong", looked)
	}
}

// TestDocumented: each family is in docs/observing.md, with its labels.
func TestDocumented(t *testing.T) {
	text, err := os.ReadFile("../../docs/observing.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := map[string]string{} // the labels by name
	for line := range strings.Lines(string(text)) {
		cells := strings.Split(line, "|")
		if len(cells) < 4 {
			continue
		}
		base := ""
		for _, n := range regexp.MustCompile("`([a-z_…]+)`").FindAllStringSubmatch(cells[1], -1) {
			name := n[1]
			if rest, ok := strings.CutPrefix(name, "…_"); ok { // "subpod_uplink_bytes_total, …_packets_total"
				name = base + rest
			} else {
				base = regexp.MustCompile(`^subpod_[a-z]+_`).FindString(name)
			}
			rows[name] = cells[2]
		}
	}
	for name, labels := range labelsOf(t) {
		name = regexp.MustCompile(`_(bucket|sum|count)$`).ReplaceAllString(name, "")
		row, ok := rows[name]
		if !ok {
			t.Errorf("docs/observing.md has no row for %s", name)
		}
		for _, l := range labels {
			if l != "instance" && l != "le" && !strings.Contains(row, l) {
				t.Errorf("docs/observing.md: the row of %s has no label %s", name, l)
			}
		}
	}
}
