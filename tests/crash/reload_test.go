package crash

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/backoff"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/tests/node"
)

// kubeletBackoff is how the kubelet reconnects (k8s.io/cri-client).
var kubeletBackoff = backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 3 * time.Second}

// copied makes a node whose programs are copies, so that they can be replaced.
func copied(t *testing.T) (*rig, string) {
	t.Helper()
	dir := filepath.Join(os.Getenv("SUBPOD_TEST_DIR"), "home", fmt.Sprintf("bin%d", time.Now().UnixNano()))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	for _, name := range []string{"subpod", "subpod-server", "subpod-node", "subpod-monitor"} {
		replace(t, node.Path(t, "bin/"+name), filepath.Join(dir, name), "")
	}
	// The daemon is called by the path in the tree: the copy takes its place.
	return newRig(t, node.Options{Prefix: []string{"sh", "-c", `exec "` + dir + `/subpod" "$1"`}}), dir
}

// replace installs a program as a package manager does, by a rename. What is
// appended to it makes it another file and changes nothing.
func replace(t *testing.T, from, to, appended string) {
	t.Helper()
	data, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to+".new", append(data, appended...), 0o755)
	}
	if err == nil {
		err = os.Rename(to+".new", to)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// watcher counts what a client sees while something happens.
type watcher struct {
	mu     sync.Mutex
	calls  int
	failed []string
	gap    time.Duration // between two good answers
	last   time.Time
	stop   chan struct{}
	done   sync.WaitGroup
}

// watch repeats a call until the end of the test or stop.
func watch(every time.Duration, call func() error) *watcher {
	w := &watcher{stop: make(chan struct{}), last: time.Now()}
	w.done.Go(func() {
		for {
			select {
			case <-w.stop:
				return
			case <-time.After(every):
			}
			err := call()
			w.mu.Lock()
			w.calls++
			if err != nil {
				w.failed = append(w.failed, err.Error())
			} else {
				w.gap = max(w.gap, time.Since(w.last))
				w.last = time.Now()
			}
			w.mu.Unlock()
		}
	})
	return w
}

func (w *watcher) end() {
	close(w.stop)
	w.done.Wait()
}

// ticks checks that a log has every line from 1 on, in order, and returns how many.
func ticks(path string) (int, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	for i, line := range lines {
		if f := strings.Fields(line); len(f) != 5 || f[4] != fmt.Sprint(i+1) || f[3] != "tick" {
			return i, fmt.Errorf("line %d of the log is %q", i+1, line)
		}
	}
	return len(lines), nil
}

// TestReload replaces the server's program and reloads, by the command and by the
// signal that systemd sends, while everything that can be noticed is watched.
func TestReload(t *testing.T) {
	r, dir := copied(t)
	ctx := t.Context()
	before := r.warm()
	r.must("pull", r.pull(ctx, nginx))

	ticker := r.newPod([]string{"sh", "-c", "i=0; while :; do i=$((i+1)); echo tick $i; usleep 20000; done"})
	r.must("ticker", ticker.up(ctx))
	port := freePort(t)
	web := r.newPod(nil, port)
	web.sandbox.PortMappings[0].ContainerPort = 80
	web.container.Image.Image = nginx
	r.must("web", web.up(ctx))
	url := fmt.Sprintf("http://127.0.0.1:%d", port)
	eventually(t, "the web server serves", converge, func() error { return get(url) })
	ip := webIP(t, r, web)
	// It asks the other pod all the time, and itself counts what goes wrong.
	client := r.newPod([]string{"sh", "-c", "while :; do wget -qO- -T 5 http://" + ip + " >/dev/null && echo good || echo bad; usleep 50000; done"})
	r.must("client", client.up(ctx))
	dying := r.newPod([]string{"sh", "-c", "while [ ! -e /tmp/go ]; do usleep 10000; done; exit 42"})
	r.must("dying", dying.up(ctx))
	created := r.newPod([]string{"sh", "-c", "exit 7"})
	r.must("created", created.run(ctx))
	r.must("created", created.create(ctx))

	command := func() error { _, err := r.Subpod("reload"); return err }
	signal := func() error { return syscall.Kill(r.PID(), syscall.SIGHUP) }
	for i, how := range []func() error{command, signal, command, signal} {
		host := watch(10*time.Millisecond, func() error { return get(url) })
		kubelet := r.dial(t, kubeletBackoff)
		cri := watch(5*time.Millisecond, func() error {
			ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
			defer cancel()
			_, err := kubelet.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
			return err
		})
		// Requests that take long must not hold the reload up.
		events, err := kubelet.GetContainerEvents(ctx, &runtimeapi.GetEventsRequest{})
		r.must("events", err)
		go func() {
			for {
				if _, err := events.Recv(); err != nil {
					return
				}
			}
		}()
		long, begun := make(chan error, 1), fmt.Sprint("/tmp/begun", i)
		go func() {
			_, err := kubelet.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: ticker.id, Cmd: []string{"sh", "-c", "touch " + begun + "; exec sleep 30"}})
			long <- err
		}()
		eventually(t, "the old server has the long request", converge, func() error {
			_, err := ticker.exec(ctx, "test", "-e", begun)
			return err
		})

		old := r.Server()
		newFile := filepath.Join(dir, "subpod-server")
		replace(t, newFile, newFile, fmt.Sprintf("reload %d", i))
		if i == 0 {
			// It ends while no server is there.
			_, err := dying.exec(ctx, "sh", "-c", "(usleep 100000; touch /tmp/go) >/dev/null 2>&1 &")
			r.must("exec", err)
		}
		begin := time.Now()
		r.must("reload", how())
		eventually(t, "the new program serves", converge, func() error {
			pid := r.Server()
			if pid == old || !sameFile(fmt.Sprintf("/proc/%d/exe", pid), newFile) {
				return fmt.Errorf("server %d is the old program", pid)
			}
			_, err := kubelet.Version(ctx, &runtimeapi.VersionRequest{})
			return err
		})
		took := time.Since(begin)
		if err := <-long; err == nil {
			t.Error("an ExecSync of 30 s has ended well over a reload")
		}
		time.Sleep(300 * time.Millisecond)
		host.end()
		cri.end()
		if len(host.failed) > 0 {
			t.Errorf("%d of %d requests to the host port failed: %v", len(host.failed), host.calls, host.failed)
		}
		t.Logf("reload %d: %v until the new server answers, longest gap between two answers %v (%d calls, %d failed); host port: %d requests, longest gap %v",
			i+1, took.Round(time.Millisecond), cri.gap.Round(time.Millisecond), cri.calls, len(cri.failed), host.calls, host.gap.Round(time.Millisecond))
	}

	for _, p := range []*pod{ticker, web, client} {
		r.must("still running", p.isState(ctx, running))
		_, err := p.exec(ctx, "true")
		r.must("exec", err)
	}
	if s, err := dying.status(ctx); err != nil || s.State != exited || s.ExitCode != 42 {
		t.Errorf("what ended meanwhile: %v, %v", s, err)
	}
	r.must("start what was created before", created.start(ctx))
	eventually(t, "it ends", converge, func() error { return created.isState(ctx, exited) })
	if s, _ := created.status(ctx); s.GetExitCode() != 7 {
		t.Errorf("what was created before ended with %d", s.GetExitCode())
	}
	logDir := func(p *pod) string { return filepath.Join(p.sandbox.LogDirectory, "c.log") }
	n, err := ticks(logDir(ticker))
	r.must("the log", err)
	answers, err := os.ReadFile(logDir(client))
	r.must("the client's log", err)
	for line := range strings.Lines(string(answers)) {
		if !strings.HasSuffix(line, " good\n") {
			t.Errorf("a pod could not reach the other one: %s", line)
		}
	}
	t.Logf("%d lines without a gap", n)
	// The log can be rotated by the new server.
	r.must("rotate", os.Rename(logDir(ticker), logDir(ticker)+".1"))
	_, err = r.cri.ReopenContainerLog(ctx, &runtimeapi.ReopenContainerLogRequest{ContainerId: ticker.id})
	r.must("reopen", err)
	for _, p := range []*pod{ticker, web, client, dying, created} {
		r.must("remove", p.removePod(ctx))
	}
	r.must("remove", r.removeImage(ctx, nginx))
	r.must("all is gone", r.settled(before))
}

func webIP(t *testing.T, r *rig, p *pod) string {
	t.Helper()
	resp, err := r.cri.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.podID})
	if err != nil {
		t.Fatal(err)
	}
	return resp.Status.Network.Ip
}

// get fetches a page by a connection of its own.
func get(url string) error {
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 5 * time.Second}
	resp, err := c.Get(url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && !strings.Contains(string(body), "nginx") {
		err = fmt.Errorf("got %q", body)
	}
	return err
}

func sameFile(a, b string) bool {
	x, errX := os.Stat(a)
	y, errY := os.Stat(b)
	return errX == nil && errY == nil && os.SameFile(x, y)
}
