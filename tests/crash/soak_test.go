package crash

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"math"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/tests/node"
)

var (
	cycles      = flag.Int("cycles", 5000, "pod cycles of the soak (with -short 120)")
	concurrency = flag.Int("concurrency", 8, "pods of the soak at the same time")
)

// drift is how much more the last tenth of a soak may take than the second.
const drift = 1.10

// sample is what must not grow.
type sample struct {
	goroutines, fds, threads, mounts, processes int
	rss, store                                  int // KiB; rss without the pages of files
}

func (r *rig) sample() (s sample, err error) {
	pid := r.Server()
	resp, err := r.cri.Status(context.Background(), &runtimeapi.StatusRequest{Verbose: true})
	if err != nil {
		return s, err
	}
	var server struct{ Goroutines int }
	if err := json.Unmarshal([]byte(resp.Info["server"]), &server); err != nil {
		return s, fmt.Errorf("the verbose status has no server: %w", err)
	}
	s.goroutines = server.Goroutines
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	s.fds = len(fds)
	text, err2 := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	mounts, err3 := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
	for _, err := range []error{err, err2, err3} {
		if err != nil {
			return s, err
		}
	}
	for line := range strings.Lines(string(text)) {
		fmt.Sscanf(line, "RssAnon: %d kB", &s.rss)
		fmt.Sscanf(line, "Threads: %d", &s.threads)
	}
	s.mounts = bytes.Count(mounts, []byte("\n"))
	// Of the node: the shell that counts is one more each time.
	out, err := r.TryEnter("sh", "-c", "ls -d /proc/[0-9]* | wc -l; du -sk "+r.DataDir+" | cut -f1")
	if err != nil {
		return s, err
	}
	_, err = fmt.Sscan(out, &s.processes, &s.store)
	return s, err
}

// yardstick is a program that has nothing to do with the daemon: how long it takes
// to run says how busy the machine is with other work.
const yardstick = "true(1)"

// cycle is a pod's whole life with all that users do, and what each request took.
func (p *pod) cycle(ctx context.Context, i int, took func(string, time.Duration)) error {
	timed := func(name string, do func(context.Context) error) error {
		begin := time.Now()
		err := do(ctx)
		took(name, time.Since(begin))
		if err != nil {
			return fmt.Errorf("cycle %d: %s: %w", i, name, err)
		}
		return nil
	}
	steps := []struct {
		name string
		do   func(context.Context) error
	}{
		{"RunPodSandbox", p.run}, {"CreateContainer", p.create}, {"StartContainer", p.start},
		{yardstick, func(ctx context.Context) error { return exec.CommandContext(ctx, "true").Run() }},
		{"ExecSync", func(ctx context.Context) error { _, err := p.exec(ctx, "true"); return err }},
		{"log", func(context.Context) error { return p.logged() }},
		{"PortForward", func(ctx context.Context) error { return p.forward(ctx, i) }},
		{"PullImage", func(ctx context.Context) error { return p.pullSome(ctx, i) }},
		{"StopContainer", p.stop}, {"RemoveContainer", p.remove}, {"StopPodSandbox", p.stopPod}, {"RemovePodSandbox", p.removePod},
	}
	for _, s := range steps {
		if err := timed(s.name, s.do); err != nil {
			return err
		}
	}
	return os.RemoveAll(p.sandbox.LogDirectory)
}

// logged waits for the container's first line.
func (p *pod) logged() (err error) {
	for deadline := time.Now().Add(converge); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		var data []byte
		if data, err = os.ReadFile(filepath.Join(p.sandbox.LogDirectory, "c.log")); err == nil {
			if strings.HasSuffix(string(data), " stdout F up\n") {
				return nil
			}
			err = fmt.Errorf("it holds %q", data)
		}
	}
	return err
}

// forward talks to the web server in the container, every tenth time by crictl as a
// user does. Else the URL is used up by a request that asks for no stream: so many
// that are never opened would be refused.
func (p *pod) forward(ctx context.Context, i int) error {
	if i%10 != 0 {
		forward, err := p.r.cri.PortForward(ctx, &runtimeapi.PortForwardRequest{PodSandboxId: p.podID, Port: []int32{8080}})
		if err != nil {
			return err
		}
		resp, err := http.Get(forward.Url)
		if err != nil {
			return err
		}
		resp.Body.Close()
		if resp.StatusCode < 400 {
			return fmt.Errorf("a request without an upgrade: %s", resp.Status)
		}
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, converge)
	defer cancel()
	var err error
	port := freePort(p.r.t)
	cmd := p.r.CrictlCommand(ctx, "port-forward", p.podID, fmt.Sprintf("%d:8080", port))
	if err := cmd.Start(); err != nil {
		return err
	}
	defer func() {
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait()
	}()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for ctx.Err() == nil {
		var resp *http.Response
		if resp, err = client.Get(fmt.Sprintf("http://127.0.0.1:%d/page", port)); err == nil {
			body, readErr := io.ReadAll(resp.Body)
			resp.Body.Close()
			if readErr == nil && string(body) == "page\n" {
				return nil
			}
			err = fmt.Errorf("got %q, %w", body, readErr)
		}
		time.Sleep(10 * time.Millisecond)
	}
	return err
}

// pullSome pulls each time; every twentieth time the image has gone before.
func (p *pod) pullSome(ctx context.Context, i int) error {
	if i%20 == 0 {
		if err := p.r.removeImage(ctx, pulled); err != nil {
			return err
		}
	}
	return p.r.pull(ctx, pulled)
}

// TestSoak lets pods come and go for a long time and looks for what grows.
func TestSoak(t *testing.T) {
	count := *cycles
	if testing.Short() {
		count = min(count, 120)
	}
	if _, err := exec.LookPath("du"); err != nil {
		t.Fatal(err)
	}
	r := newRig(t, node.Options{Config: "[daemon]\nlog_level = \"warn\"\n"})
	before := r.warm()
	tenth := count / 10
	var samples []sample
	var latency []map[string]time.Duration // median of each call, by tenth
	command := []string{"sh", "-c", "mkdir /www; echo page >/www/page; httpd -p 8080 -h /www; echo up; trap 'exit 0' TERM; sleep 1000000 & wait"}
	begin := time.Now()
	for n := range 10 {
		var mu sync.Mutex
		took := map[string][]time.Duration{}
		var group errgroup.Group
		group.SetLimit(*concurrency)
		for i := range tenth {
			p := r.newPod(command)
			group.Go(func() error {
				return p.cycle(t.Context(), n*tenth+i, func(name string, d time.Duration) {
					mu.Lock()
					defer mu.Unlock()
					took[name] = append(took[name], d)
				})
			})
		}
		r.must("soak", group.Wait())
		medians := map[string]time.Duration{}
		for name, all := range took {
			slices.Sort(all)
			medians[name] = all[len(all)/2]
		}
		latency = append(latency, medians)
		s, err := r.sample()
		r.must("measure", err)
		samples = append(samples, s)
		t.Logf("after %5d cycles, %4.0f s: %+v, medians %v", (n+1)*tenth, time.Since(begin).Seconds(), s, medians)
	}
	if err := r.settled(before); err != nil {
		t.Error(err)
	}
	r.flat(samples, latency, testing.Short())
}

// flat compares the last tenth with the second.
func (r *rig) flat(samples []sample, latency []map[string]time.Duration, short bool) {
	r.t.Helper()
	early, late := samples[1], samples[len(samples)-1]
	for _, c := range []struct {
		what        string
		early, late int
		slack       int // what comes and goes by chance
	}{
		{"goroutines", early.goroutines, late.goroutines, 8},
		{"file descriptors", early.fds, late.fds, 6},
		{"threads", early.threads, late.threads, 6},
		{"mounts", early.mounts, late.mounts, 0},
		{"processes of the node", early.processes, late.processes, 4},
		{"KiB of the data directory", early.store, late.store, 1024},
		{"KiB of the server's own memory", early.rss, late.rss, 4096},
	} {
		if limit := int(math.Ceil(float64(c.early)*drift)) + c.slack; c.late > limit {
			r.t.Errorf("%s grew from %d to %d, limit %d", c.what, c.early, c.late, limit)
		}
	}
	if short {
		return // twelve pods a tenth say nothing about time
	}
	var sum [2]time.Duration
	tenths := [2]map[string]time.Duration{latency[1], latency[len(latency)-1]}
	for i, medians := range tenths {
		for name, d := range medians {
			if name != yardstick {
				sum[i] += d
			}
		}
	}
	grew := float64(sum[1]) / float64(sum[0])
	busier := float64(tenths[1][yardstick]) / float64(tenths[0][yardstick])
	r.t.Logf("sum of the medians of all calls: second tenth %v, last tenth %v (× %.2f); the machine's own yardstick %v, %v (× %.2f)",
		sum[0], sum[1], grew, tenths[0][yardstick], tenths[1][yardstick], busier)
	if grew > drift*max(busier, 1) {
		r.t.Errorf("requests became slower: × %.2f", grew)
	}
}
