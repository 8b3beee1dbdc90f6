package cri

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/subpod/subpod/tests/node"
)

// scraper asks a node's server for metrics, as Prometheus does.
type scraper struct {
	*testing.T
	network, address string
}

// text returns what is served; an error where nothing is.
func (s scraper) text() (string, error) {
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, s.network, s.address)
		},
	}}
	resp, err := client.Get("http://localhost/metrics")
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", resp.Status, text)
	}
	return string(text), err
}

// value returns that of a series, written as Prometheus does; 0 for one that is not there.
func (s scraper) value(series string) (v float64) {
	s.Helper()
	text, err := s.text()
	if err != nil {
		s.Fatal(err)
	}
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, series+" "); ok {
			if _, err := fmt.Sscan(rest, &v); err != nil {
				s.Fatalf("line %q: %v", line, err)
			}
		}
	}
	return v
}

// grows runs something and waits until the series have grown by so much at least.
func (s scraper) grows(what string, do func(), series map[string]float64) {
	s.Helper()
	before := map[string]float64{}
	for name := range series {
		before[name] = s.value(name)
	}
	do()
	for name, by := range series {
		node.Eventually(s, what+" changes "+name, func() error {
			if now := s.value(name); now < before[name]+by {
				return fmt.Errorf("it was %v and is %v, not %v more", before[name], now, by)
			}
			return nil
		})
	}
}

// TestMetrics: what a node does is in its metrics; where they are, and that they are off
// else; and no secret is among them.
func TestMetrics(t *testing.T) {
	const listen = "[metrics]\nlisten = %q\n"
	n := node.Start(t, node.Options{Config: fmt.Sprintf(listen, "unix")})
	s := scraper{t, "unix", filepath.Join(n.RunDir, "metrics.sock")}
	if st, err := os.Stat(s.address); err != nil || st.Mode() != os.ModeSocket|0o600 {
		t.Errorf("the socket: %v, %v", st, err)
	}
	s.grows("a pull", func() { n.MustSubpod("pull", busybox) }, map[string]float64{
		`subpod_image_pulls_total{result="ok"}`: 1, `subpod_image_pull_bytes_total`: 100000, `subpod_image_pull_duration_seconds_count`: 1,
		`subpod_step_duration_seconds_count{step="fetch and unpack"}`: 1,
	})
	s.grows("a pull of nothing", func() {
		if _, err := n.Subpod("pull", "docker.io/library/there-is-none"); err == nil {
			t.Error("an image that does not exist was pulled")
		}
	}, map[string]float64{`subpod_image_pulls_total{result="not_found"}`: 1})
	s.grows("a pod", func() {
		n.MustSubpod("run", "-d", "--name", "web", "-e", "TOKEN=hunter2", busybox, "sh", "-c", "echo hunter2; exec sleep 1000")
	}, map[string]float64{
		`subpod_pods{namespace="default",state="ready"}`: 1, `subpod_containers{namespace="default",state="running"}`: 1,
		`subpod_helper_processes{program="conmon"}`: 1, `subpod_state_writes_total`: 3,
		`subpod_step_duration_seconds_count{step="network"}`: 1, `subpod_step_duration_seconds_count{step="OCI create"}`: 1,
		`subpod_rpc_requests_total{code="OK",method="Session",service="subpod.v1.Control"}`: 1,
	})
	s.grows("a packet out", func() { _, _ = n.Subpod("exec", "web", "sh", "-c", "nc -w 5 192.0.2.1 9") }, map[string]float64{`subpod_uplink_bytes_total{direction="send"}`: 50})
	s.grows("restarts", func() {
		n.MustSubpod("run", "-d", "--name", "again", "--restart", "on-failure:1", busybox, "false")
	}, map[string]float64{`subpod_container_restarts_total{container="again",namespace="default",pod="again"}`: 1, `subpod_state_commits_total{result="ok"}`: 1})
	s.grows("a bad request", func() { _, _ = n.TryCrictl("start", "0123") }, map[string]float64{
		`subpod_rpc_requests_total{code="NotFound",method="StartContainer",service="runtime.v1.RuntimeService"}`: 1,
		`subpod_rpc_duration_seconds_count{method="StartContainer",service="runtime.v1.RuntimeService"}`:         1,
	})
	s.grows("a stop", func() { n.MustSubpod("stop", "-t", "0", "web") }, map[string]float64{`subpod_containers{namespace="default",state="exited"}`: 1, `subpod_pods{namespace="default",state="notready"}`: 1})
	for _, series := range []string{"process_resident_memory_bytes", "go_goroutines", "process_open_fds"} {
		if s.value(series) < 1 {
			t.Errorf("%s is %v", series, s.value(series))
		}
	}
	text, err := s.text()
	if err != nil || strings.Contains(text, "hunter2") {
		t.Errorf("metrics have a secret, or none are there: %v", err)
	}
	if got := n.MustSubpod("system", "metrics"); !strings.Contains(got, "subpod_build_info{") {
		t.Errorf("subpod system metrics: %.300s", got)
	}
	restarts := s.value(`subpod_helper_restarts_total{program="server"}`)
	n.KillServer()
	node.Eventually(t, "the restart of the server is counted", func() error {
		text, err := s.text()
		if err == nil && !strings.Contains(text, fmt.Sprintf("subpod_helper_restarts_total{program=\"server\"} %v\n", restarts+1)) {
			err = fmt.Errorf("it is not: %s", text)
		}
		return err
	})

	n.MustSubpod("ps") // it serves: a reload is no failed start

	// On a port, and off, after a reload.
	port := scraper{t, "tcp", fmt.Sprintf("127.0.0.1:%d", node.FreePort(t))}
	n.WriteHome(".config/subpod/subpod.toml", fmt.Sprintf(listen, port.address))
	n.MustSubpod("reload")
	if v := port.value(`subpod_pods{namespace="default",state="notready"}`); v < 1 {
		t.Errorf("on a port there are %v pods", v)
	}
	if got := n.MustSubpod("system", "metrics"); !strings.Contains(got, "subpod_build_info{") {
		t.Errorf("subpod system metrics, from a port: %.300s", got)
	}
	if _, err := s.text(); err == nil {
		t.Error("the socket still serves")
	}
	n.WriteHome(".config/subpod/subpod.toml", "")
	n.MustSubpod("reload")
	if _, err := port.text(); err == nil {
		t.Error("metrics are off and served")
	}
	if _, err := n.Subpod("system", "metrics"); err == nil || !strings.Contains(err.Error(), "metrics are off") {
		t.Errorf("subpod system metrics: %v", err)
	}

	// A port that is taken costs the metrics, not the server.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	n.WriteHome(".config/subpod/subpod.toml", fmt.Sprintf(listen, l.Addr()))
	n.MustSubpod("reload")
	n.MustSubpod("ps")
	node.Eventually(t, "the log says why", func() error { // it comes through a pipe
		if log := n.Log(); !strings.Contains(log, "no metrics are served") || !strings.Contains(log, l.Addr().String()) {
			return errors.New(log)
		}
		return nil
	})
}

// TestTrace: the time of requests is shown by steps, those of a client's own trace
// continue it, and no secret is there.
func TestTrace(t *testing.T) {
	n := node.Start(t, node.Options{})
	n.MustSubpod("pull", busybox)
	var followed strings.Builder
	follow := n.Command(t.Context(), node.Path(t, node.Subpod), "system", "trace", "-f", "-n", "1", "-o", "json")
	out, err := follow.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := follow.Start(); err != nil {
		t.Fatal(err)
	}
	first := make([]byte, 1) // of the pull: it follows from here on
	if _, err := io.ReadFull(out, first); err != nil {
		t.Fatal(err)
	}
	n.MustSubpod("run", "-d", "--name", "web", "-e", "TOKEN=hunter2", busybox, "sh", "-c", "echo hunter2; exec sleep 1000")
	if _, err := n.Subpod("run", "--rm", "--name", "bad", busybox, "/no-hunter3"); err == nil {
		t.Error("a command that does not exist has run")
	}
	lines := bufio.NewReader(out)
	for !strings.Contains(followed.String(), "default/bad") {
		line, err := lines.ReadString('\n')
		if err != nil {
			t.Fatalf("the follower has ended: %v; it had: %s", err, followed.String())
		}
		followed.WriteString(line)
	}
	tree := n.MustSubpod("system", "trace", "default/web")
	node.Contains(t, "trace", tree, "Run", "claim the name", "files", "namespaces", "network", "start the monitor", "root file system", "OCI specification", "OCI create", "start init", "name=default/web", "OK")
	if strings.Contains(tree, "default/bad") || strings.Contains(tree, "Pull") {
		t.Errorf("other requests are shown: %s", tree)
	}
	if all := n.MustSubpod("system", "trace", "-n", "100", "-o", "json"); strings.Contains(all, "hunter2") {
		t.Errorf("a trace has a secret: %s", all)
	}
	node.Contains(t, "the pull", n.MustSubpod("system", "trace", "--method", "Pull"), "fetch and unpack", "image=docker.io/library/busybox:latest")
	node.Contains(t, "a failure", n.MustSubpod("system", "trace", "bad"), "Failed", "start failed", "tear down", "not found")
	if slow := n.MustSubpod("system", "trace", "--slowest", "-n", "1"); strings.Count(slow, "Z  ") != 1 && strings.Count(slow, "\n20") != 0 {
		t.Errorf("the slowest one: %s", slow)
	}
	var otlp struct {
		ResourceSpans []struct {
			ScopeSpans []struct {
				Spans []struct{ TraceID, SpanID, ParentSpanID, StartTimeUnixNano, EndTimeUnixNano string }
			}
		}
	}
	text := n.MustSubpod("system", "trace", "-n", "1", "-o", "otlp", "default/web")
	if err := json.Unmarshal([]byte(text), &otlp); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	spans := otlp.ResourceSpans[0].ScopeSpans[0].Spans
	ids := map[string]bool{}
	for i, s := range spans {
		ids[s.SpanID] = true
		if len(s.TraceID) != 32 || len(s.SpanID) != 16 || s.TraceID != spans[0].TraceID || i > 0 && !ids[s.ParentSpanID] || s.StartTimeUnixNano > s.EndTimeUnixNano {
			t.Errorf("span %d: %+v", i, s)
		}
	}
	if len(spans) < 10 || len(ids) != len(spans) {
		t.Errorf("%d spans, %d IDs", len(spans), len(ids))
	}
	if err := follow.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, lines); err != nil {
		t.Error(err)
	}
	if err := follow.Wait(); err != nil {
		t.Errorf("an interrupted follower: %v", err)
	}
	node.Contains(t, "what was followed", followed.String(), "default/web", "default/bad")
	// A reload ends who follows, and says so.
	var said strings.Builder
	follow = n.Command(t.Context(), node.Path(t, node.Subpod), "system", "trace", "-f", "-n", "1")
	follow.Stderr = &said
	if out, err = follow.StdoutPipe(); err != nil {
		t.Fatal(err)
	}
	if err := follow.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(out, first); err != nil {
		t.Fatal(err)
	}
	n.MustSubpod("reload")
	if _, err := io.Copy(io.Discard, out); err != nil {
		t.Error(err)
	}
	if err := follow.Wait(); err == nil {
		t.Error("a follower that a reload ends says nothing")
	}
	node.Contains(t, "at a reload", said.String(), "this server ends")
	if _, err := n.Subpod("system", "trace", "-o", "xml"); err == nil || !strings.Contains(err.Error(), "tree, json or otlp") {
		t.Errorf("-o xml: %v", err)
	}
}

// TestLog: its level changes while the server runs, a failed request is one line with its
// code and cause, and what is known of all containers is said once.
func TestLog(t *testing.T) {
	n := node.Start(t, node.Options{})
	n.MustSubpod("pull", busybox)
	before := len(n.Log())
	since := func() string { return n.Log()[before:] }
	for i := range 3 {
		n.MustSubpod("run", "-d", "--oom-score-adj", fmt.Sprint(-900-i), "--name", fmt.Sprint("quiet", i), busybox, "sleep", "1000")
	}
	_, _ = n.Subpod("run", "--rm", "--name", "bad", busybox, "/no-such-command")
	node.Eventually(t, "all of it has come through the log's pipe", func() error {
		if !strings.Contains(since(), `msg="request failed"`) {
			return errors.New(since())
		}
		return nil
	})
	if got := strings.Count(since(), "cannot be honoured"); got != 1 {
		t.Errorf("%d lines say of three containers what holds for all:\n%s", got, since())
	}
	lines := 0
	for line := range strings.Lines(since()) {
		if strings.Contains(line, "no-such-command") && !strings.Contains(line, "msg=audit") {
			lines++
			node.Contains(t, "the line of a failure", line, "level=WARN", `msg="request failed"`, "code=InvalidArgument", "not found")
		}
	}
	if lines != 1 {
		t.Errorf("a failure has %d lines:\n%s", lines, since())
	}
	if strings.Contains(since(), "level=DEBUG") {
		t.Errorf("at level info:\n%s", since())
	}
	if got := n.MustSubpod("system", "log-level"); got != "info" {
		t.Errorf("the level is %q", got)
	}
	if got := n.MustSubpod("system", "log-level", "debug"); got != "debug" {
		t.Errorf("the level is %q now", got)
	}
	before = len(n.Log())
	n.Crictl("pods")
	node.Eventually(t, "the log has more", func() error {
		if !strings.Contains(since(), `level=DEBUG msg="request served" method=ListPodSandbox`) {
			return fmt.Errorf("it has\n%s", since())
		}
		return nil
	})
	if _, err := n.Subpod("system", "log-level", "loud"); err == nil || !strings.Contains(err.Error(), `"loud" is not one of debug, info, warn, error`) {
		t.Errorf("log-level loud: %v", err)
	}
	n.MustSubpod("reload")
	if got := n.MustSubpod("system", "log-level"); got != "info" {
		t.Errorf("after a reload the level is %q", got)
	}
}

// TestLogWithoutReader: who reads the log may go: the server says what it has to say to
// nobody.
func TestLogWithoutReader(t *testing.T) {
	n := node.Start(t, node.Options{Prefix: []string{"bash", "-c", `exec "$@" 2> >(exec head -n 1 >&2)`, "bash"}})
	server := n.Server()
	n.MustSubpod("run", "-d", "--name", "web", busybox, "sleep", "1000")
	n.MustSubpod("system", "log-level", "debug") // each request is a line
	for range 3 {
		n.MustSubpod("ps")
	}
	if now := n.Server(); now != server {
		t.Errorf("the server was process %d and is %d", server, now)
	}
	n.MustSubpod("reload")
	n.MustSubpod("exec", "web", "true")
}
