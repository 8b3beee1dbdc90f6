package supervise

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/api"
	"github.com/subpod/subpod/pkg/oci"
	"github.com/subpod/subpod/pkg/state"
	"github.com/subpod/subpod/pkg/workload"
)

// fake is one pod whose containers run no commands: ends says when and how a run of one
// ends by itself.
type fake struct {
	mu         sync.Mutex
	pod        state.Pod
	containers []state.Container
	log        []string
	changed    func()

	ends  func(name string, run int) (after time.Duration, code int32, ok bool)
	exec  func(name, command string) int32
	build error // of Rebuild
	make  error // of StartAgain
	runs  map[string]int
	// before is called once, before the next change of the supervision, ending at the next
	// End; both are another client.
	before, ending func()
	// building is called by each Rebuild, also of a sandbox that is ready.
	building func()
}

func newFake(spec *workload.Spec) *fake {
	return &fake{
		pod: state.Pod{
			ID: "pod", Workload: spec, Supervision: workload.Status{StartedAt: time.Now()}, Status: state.PodStatus{Phase: state.PodReady},
			Config: state.Msg(&runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Name: "web"}, Labels: map[string]string{api.LabelMadeBy: api.MadeByPlay}}),
		},
		changed: func() {}, runs: map[string]int{},
		ends: func(string, int) (time.Duration, int32, bool) { return 0, 0, false },
		exec: func(string, string) int32 { return 0 },
	}
}

// serve starts a supervisor of the pod, as a server does.
func (f *fake) serve(t *testing.T) *Supervisor {
	t.Helper()
	s := New(Options{NodeID: "node", Pods: f, Records: f, Sessions: f, Volumes: func(string) string { return "/volumes" }, Log: slog.New(slog.DiscardHandler)})
	f.mu.Lock()
	f.changed = func() { s.Kick("pod") }
	f.mu.Unlock()
	s.Start()
	return s
}

func (f *fake) note(format string, args ...any) { f.log = append(f.log, fmt.Sprintf(format, args...)) }

func (f *fake) Pod(id string) (state.Pod, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if id != f.pod.ID {
		return state.Pod{}, state.ErrNotFound
	}
	return f.pod, nil
}

func (f *fake) Pods() []state.Pod { return []state.Pod{f.pod} }

func (f *fake) FindContainer(id string) (state.Container, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if c := f.find(id); c != nil {
		return *c, nil
	}
	return state.Container{}, state.ErrNotFound
}

func (f *fake) find(id string) *state.Container {
	for i := range f.containers {
		if f.containers[i].ID == id {
			return &f.containers[i]
		}
	}
	return nil
}

func (f *fake) ContainersOf(string) []state.Container {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.containers)
}

func (f *fake) Supervise(_ string, change func(state.Pod) (workload.Status, bool)) (state.Pod, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if before := f.before; before != nil {
		f.before = nil
		before()
	}
	if next, ok := change(f.pod); ok {
		f.pod.Supervision = next
	}
	return f.pod, nil
}

func (f *fake) Rebuild(_ context.Context, _ string, wanted func(state.Pod) bool) error {
	if f.building != nil {
		f.building()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.pod.Status.Phase == state.PodReady {
		return nil
	}
	if f.build != nil || !wanted(f.pod) {
		return errors.Join(f.build, errors.New("not built"))
	}
	f.note("rebuild")
	f.pod.Status.Phase = state.PodReady
	f.pod.Supervision.Generation++
	return nil
}

func (f *fake) CreateContainer(_ context.Context, _ string, cfg *runtimeapi.ContainerConfig) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	id := "id-" + cfg.Metadata.Name
	f.containers = append(f.containers, state.Container{ID: id, PodID: "pod", Config: state.Msg(cfg), Status: state.ContainerStatus{Created: true}})
	return id, nil
}

func (f *fake) StartAgain(_ context.Context, id string, _ *runtimeapi.ContainerConfig, _ bool, wanted func(state.Pod) bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := f.find(id)
	name := c.Config.V.Metadata.Name
	if !wanted(f.pod) || f.make != nil {
		return errors.Join(f.make, errors.New("not started"))
	}
	if c.State() == runtimeapi.ContainerState_CONTAINER_RUNNING {
		return nil // by whoever came first
	}
	f.note("start %s", name)
	c.Status = state.ContainerStatus{Created: true, StartedAt: time.Now()}
	if after, code, ok := f.ends(name, f.runs[name]); ok {
		started := c.Status.StartedAt
		time.AfterFunc(after, func() { f.exit(id, started, code) })
	}
	f.runs[name]++
	return nil
}

func (f *fake) exit(id string, started time.Time, code int32) {
	f.mu.Lock()
	c := f.find(id)
	if c == nil || !c.Status.StartedAt.Equal(started) || !c.Status.FinishedAt.IsZero() {
		f.mu.Unlock()
		return
	}
	c.Status.FinishedAt, c.Status.ExitCode = time.Now(), code
	changed := f.changed
	f.mu.Unlock()
	changed()
}

func (f *fake) End(ctx context.Context, id string, _ time.Duration) error {
	f.mu.Lock()
	ending := f.ending
	f.mu.Unlock()
	if ending != nil {
		ending()
	}
	f.mu.Lock()
	if err := ctx.Err(); err != nil {
		f.mu.Unlock()
		return err
	}
	c := f.find(id)
	f.note("end %s", c.Config.V.Metadata.Name)
	started := c.Status.StartedAt
	f.mu.Unlock()
	f.exit(id, started, 137)
	return nil
}

func (f *fake) Finish(context.Context, string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.note("finish")
	f.pod.Status.Phase = state.PodNotReady
	return nil
}

func (f *fake) MarkStopped(_ context.Context, id string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	name := f.find(id).Config.V.Metadata.Name
	p := f.pod.Supervision.Containers[name]
	p.Stopped = true
	f.pod.Supervision = f.pod.Supervision.With(name, p)
	return nil
}

func (f *fake) Hold(string) func() { return func() {} }

func (f *fake) Probe(_ context.Context, id string, cmd []string, _ time.Duration) (oci.ExecResult, error) {
	return oci.ExecResult{ExitCode: f.exec(strings.TrimPrefix(id, "id-"), strings.Join(cmd, " "))}, nil
}

func (f *fake) Dial(context.Context, string, string, int32) (net.Conn, error) {
	return nil, errors.New("closed")
}

// stopPod is the user's StopPodSandbox.
func (f *fake) stopPod() {
	f.mu.Lock()
	f.pod.Supervision.Stopped, f.pod.Supervision.StoppedIn = true, "node"
	f.pod.Status.Phase = state.PodNotReady
	changed := f.changed
	f.mu.Unlock()
	changed()
}

func (f *fake) count(line string) (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, l := range f.log {
		if l == line {
			n++
		}
	}
	return n
}

func containerOf(name, role, policy string) workload.Container {
	cfg, err := proto.Marshal(&runtimeapi.ContainerConfig{Metadata: &runtimeapi.ContainerMetadata{Name: name}})
	if err != nil {
		panic(err)
	}
	return workload.Container{Name: name, Role: role, Restart: workload.Policy{Name: policy}, Config: cfg}
}

func play(containers ...workload.Container) *workload.Spec {
	return &workload.Spec{Backoff: workload.PlayBackoff, Containers: containers}
}

// TestUnitRestarts: a container that always fails is restarted with the pauses of its
// backoff, by one server after the other; stop ends that, also in a pause, and start
// begins anew.
func TestUnitRestarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(play(containerOf("a", workload.Main, workload.UnlessStopped)))
		f.ends = func(string, int) (time.Duration, int32, bool) { return 0, 1, true }
		s := f.serve(t)
		time.Sleep(time.Second)
		synctest.Wait()
		if n := f.count("start a"); n != 2 {
			t.Errorf("%d starts after a second", n)
		}
		s.Close() // in a pause
		time.Sleep(time.Minute)
		if n := f.count("start a"); n != 2 {
			t.Errorf("%d starts without a server", n)
		}
		s = f.serve(t)
		synctest.Wait()
		if n := f.count("start a"); n != 3 {
			t.Errorf("%d starts by the next server", n)
		}
		time.Sleep(19 * time.Second)
		synctest.Wait()
		if n := f.count("start a"); n != 3 {
			t.Errorf("%d starts within the second pause", n)
		}
		f.stopPod()
		time.Sleep(time.Hour)
		if n := f.count("start a"); n != 3 {
			t.Errorf("%d starts after it was stopped", n)
		}
		f.mu.Lock()
		f.ends = func(string, int) (time.Duration, int32, bool) { return 0, 0, false }
		f.mu.Unlock()
		for range 2 { // two clients, one after the other: the second finds it running
			if err := s.StartPod(t.Context(), "pod", ""); err != nil {
				t.Error(err)
			}
		}
		if n := f.count("start a"); n != 4 {
			t.Errorf("%d starts after start", n)
		}
		s.Close()
	})
}

// TestUnitCannotStart: what cannot be made is tried again, not in a loop; a rebuild, too.
func TestUnitCannotStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(play(containerOf("a", workload.Main, workload.UnlessStopped)))
		f.make = errors.New("the image is gone")
		f.build = errors.New("the port is taken")
		f.pod.Status.Phase = state.PodNotReady
		s := f.serve(t)
		time.Sleep(time.Minute)
		f.mu.Lock()
		f.build = nil
		f.mu.Unlock()
		time.Sleep(5 * time.Minute)
		if n := f.count("rebuild"); n != 1 {
			t.Errorf("%d sandboxes", n)
		}
		f.mu.Lock()
		f.make = nil
		restarts := f.pod.Supervision.Containers["a"].Restarts
		f.mu.Unlock()
		time.Sleep(6 * time.Minute)
		synctest.Wait()
		if n := f.count("start a"); n != 1 || restarts != 0 {
			t.Errorf("%d starts, %d restarts were counted", n, restarts)
		}
		s.Close()
	})
}

// TestUnitOrder: a job with an init container and a sidecar; its client follows it.
func TestUnitOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(play(
			containerOf("init", workload.Init, workload.OnFailure), containerOf("side", workload.Sidecar, workload.UnlessStopped),
			containerOf("main", workload.Main, workload.OnFailure)))
		f.ends = func(name string, run int) (time.Duration, int32, bool) {
			switch name {
			case "init":
				return time.Second, int32(1 - min(run, 1)), true
			case "main":
				return time.Minute, 0, true
			}
			return 0, 0, false
		}
		s := f.serve(t)
		var texts []string
		var last Event
		err := s.Follow(t.Context(), "pod", func(e Event) error {
			if e.Text != "" {
				texts = append(texts, e.Text)
			}
			if e.Up {
				texts = append(texts, "up")
			}
			last = e
			return nil
		})
		want := []string{
			"web/init: started", "web/init: exited with code 1; restarting in 0s", "web/init: started", "web/init: completed",
			"web/side: started", "web/main: started", "up", "web/main: completed", "web: succeeded",
		}
		if err != nil || !slices.Equal(texts, want) || !last.Final || last.Failed {
			t.Errorf("%v\n%s", err, strings.Join(texts, "\n"))
		}
		if !f.pod.Supervision.Done || f.count("finish") != 1 {
			t.Errorf("%+v, %v", f.pod.Supervision, f.log)
		}
		s.Close()
	})
}

// TestUnitProbes: a startup probe holds the others back; a failed liveness probe ends the
// container; readiness is reported.
func TestUnitProbes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		probe := func(command string) *workload.Probe {
			return &workload.Probe{Command: []string{command}, Period: time.Second, Timeout: time.Second, Successes: 1, Failures: 3}
		}
		c := containerOf("a", workload.Main, workload.UnlessStopped)
		c.Startup, c.Liveness, c.Readiness = probe("startup"), probe("liveness"), probe("readiness")
		f := newFake(play(c))
		begin := time.Now()
		asked := map[string]int{}
		var mu sync.Mutex
		f.exec = func(_, command string) int32 {
			mu.Lock()
			defer mu.Unlock()
			asked[command]++
			switch at := time.Since(begin); command {
			case "startup":
				if asked["liveness"] > 0 && at < 10*time.Second {
					t.Error("liveness was asked before startup has succeeded")
				}
				return map[bool]int32{true: 1, false: 0}[at < 2*time.Second]
			case "liveness":
				return map[bool]int32{true: 1, false: 0}[at > 10*time.Second && at < 14*time.Second]
			}
			return 0
		}
		s := f.serve(t)
		time.Sleep(time.Minute)
		synctest.Wait()
		if f.count("start a") != 2 || f.count("end a") != 1 {
			t.Errorf("%v", f.log)
		}
		s.Close()
		s.mu.Lock()
		events, _, _ := s.units["pod"].feed.after(0)
		s.mu.Unlock()
		ready := 0
		for _, e := range events {
			if e.Text == "web/a: ready" {
				ready++
			}
		}
		if ready != 2 {
			t.Errorf("ready %d times: %+v", ready, events)
		}
	})
}

// TestStrangers: what a kubelet has made is not looked at, and not started.
func TestStrangers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(nil)
		f.pod.Config.V.Labels = nil
		f.containers = []state.Container{{ID: "id", PodID: "pod", Status: state.ContainerStatus{Created: true, StartedAt: time.Now(), FinishedAt: time.Now()}}}
		s := f.serve(t)
		s.Kick("pod")
		time.Sleep(time.Hour)
		for _, start := range []func() error{
			func() error { return s.StartPod(t.Context(), "pod", "") },
			func() error { return s.RestartPod(t.Context(), "pod", "id", 0) },
		} {
			if err := start(); !errors.Is(err, errdefs.ErrFailedPrecondition) {
				t.Errorf("%v", err)
			}
		}
		if len(f.log) > 0 || len(s.units) > 0 {
			t.Errorf("%v", f.log)
		}
		s.Close()
	})
}

// TestHTTP: which answers are success, and what is sent.
func TestHTTP(t *testing.T) {
	for code, ok := range map[int]bool{200: true, 204: true, 302: true, 399: true, 400: false, 404: false, 500: false} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/x" || r.Host != "there" || r.Header.Get("A") != "b" {
				t.Errorf("%s, %s, %v", r.URL, r.Host, r.Header)
			}
			w.WriteHeader(code)
		}))
		conn, err := net.Dial("tcp", server.Listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		err = succeeded(get(t.Context(), conn, &workload.HTTP{Path: "x", Headers: [][2]string{{"host", "there"}, {"a", "b"}}}))
		if (err == nil) != ok {
			t.Errorf("%d: %v", code, err)
		}
		conn.Close()
		server.Close()
	}
}
