package play

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/api"
	"github.com/subpod/subpod/pkg/client"
)

func removeAll(dir string) error { return os.RemoveAll(dir) }

// equal compares the recorded lines with the wanted ones.
func equal(t *testing.T, got []string, want ...string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("got:\n  %s\nwant:\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
}

// leftFiles fails if files of pods are left.
func leftFiles(t *testing.T, o Options) {
	t.Helper()
	for _, dir := range []string{filepath.Join(o.DataDir, "play"), filepath.Join(o.DataDir, "logs"), filepath.Join(o.RunDir, "play")} {
		if left, err := os.ReadDir(dir); err == nil && len(left) > 0 {
			t.Errorf("%s is not empty: %v", dir, left)
		}
	}
}

func TestOrder(t *testing.T) {
	f, o := newFake(t)
	f.exits = func(name string, _ uint32) (int32, bool) { return 0, name != "side" }
	err := Play(t.Context(), parse(t, podSpec("p", `{restartPolicy: OnFailure, terminationGracePeriodSeconds: 7,
  initContainers: [{name: one, image: image}, {name: side, image: image, restartPolicy: Always}, {name: two, image: image}],
  containers: [{name: main, image: image}]}`)), o)
	if err != nil {
		t.Fatal(err)
	}
	equal(t, f.notes("run", "start", "stop"), "run p", "start one/0", "start side/0", "start two/0", "start main/0", "stop side/0 after 7 s", "stop pod p")
	equal(t, f.podNames(), "p") // its status and logs can be read
}

func TestRestart(t *testing.T) {
	for _, c := range []struct {
		policy string
		exits  []int32 // of the attempts
		want   []string
		err    error
	}{
		{"OnFailure", []int32{1, 2, 0}, []string{"start c/0", "remove c/0", "start c/1", "remove c/1", "start c/2"}, nil},
		{"OnFailure", []int32{0}, []string{"start c/0"}, nil},
		{"Never", []int32{3}, []string{"start c/0"}, ErrFailed},
		{"Never", []int32{0}, []string{"start c/0"}, nil},
	} {
		f, o := newFake(t)
		f.exits = func(_ string, attempt uint32) (int32, bool) { return c.exits[attempt], true }
		err := Play(t.Context(), parse(t, podSpec("p", "{restartPolicy: "+c.policy+", containers: [{name: c, image: image}]}")), o)
		if !errors.Is(err, c.err) {
			t.Errorf("%s, exit codes %v: %v, want %v", c.policy, c.exits, err, c.err)
		}
		equal(t, f.notes("start", "remove c"), c.want...)
	}
}

// TestNameTaken checks that the pod of another command is not touched when its name
// was taken between the look and the request.
func TestNameTaken(t *testing.T) {
	f, o := newFake(t)
	f.exits = func(string, uint32) (int32, bool) { return 0, false }
	other := &runtimeapi.PodSandboxConfig{
		Metadata: client.PodMetadata("default", "taken"), Annotations: map[string]string{api.AnnotationRunID: "other"},
		Labels: map[string]string{api.LabelMadeBy: api.MadeByPlay},
	}
	f.onRun = func(name string) {
		if name == "first" {
			f.mu.Lock()
			f.pods["other"] = &fakePod{other, runtimeapi.PodSandboxState_SANDBOX_READY}
			f.mu.Unlock()
		}
	}
	first := parse(t, podSpec("first", "{containers: [{name: c, image: image}]}"))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Play(ctx, first, o) }()
	for len(f.notes("start")) == 0 {
		time.Sleep(time.Millisecond)
	}
	taken := parse(t, podSpec("taken", "{containers: [{name: c, image: image}]}"))
	r := &runner{Options: o, set: taken, pod: taken.Pods[0], up: func() {}}
	if err := r.run(t.Context()); !errors.Is(err, ErrExists) {
		t.Errorf("a name that is taken: %v", err)
	}
	equal(t, f.podNames(), "first", "taken")
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	equal(t, f.podNames(), "taken")
	leftFiles(t, o)
}

// TestSetIsGivenUp checks that nothing of a set is left when one name is taken.
func TestSetIsGivenUp(t *testing.T) {
	f, o := newFake(t)
	f.exits = func(string, uint32) (int32, bool) { return 0, false }
	// A pod that "play" does not list, since another command has made it.
	f.pods["other"] = &fakePod{&runtimeapi.PodSandboxConfig{Metadata: client.PodMetadata("default", "b")}, runtimeapi.PodSandboxState_SANDBOX_READY}
	up := false
	o.Up = func(error) { up = true }
	set := podSpec("a", "{containers: [{name: c, image: image}]}") + podSpec("b", "{containers: [{name: c, image: image}]}")
	if err := Play(t.Context(), parse(t, set), o); !errors.Is(err, ErrExists) || !strings.Contains(err.Error(), "b; remove it") {
		t.Errorf("play: %v", err)
	}
	equal(t, f.podNames(), "b")
	leftFiles(t, o)
	if up {
		t.Error("it was reported to be up")
	}
}

func TestExists(t *testing.T) {
	f, o := newFake(t)
	set := podSpec("p", "{restartPolicy: Never, containers: [{name: c, image: image}]}")
	if err := Play(t.Context(), parse(t, set), o); err != nil {
		t.Fatal(err)
	}
	if err := Play(t.Context(), parse(t, set), o); !errors.Is(err, ErrExists) {
		t.Errorf("again: %v", err)
	}
	for range 2 { // idempotent
		if err := Down(t.Context(), parse(t, set), o); err != nil {
			t.Fatal(err)
		}
	}
	equal(t, f.podNames())
	leftFiles(t, o)
}

// TestAnswerLost interrupts Play when the server has created the pod and has not
// answered yet.
func TestAnswerLost(t *testing.T) {
	f, o := newFake(t)
	ctx, cancel := context.WithCancel(t.Context())
	f.onRun = func(string) {
		cancel()
		time.Sleep(10 * time.Millisecond) // the client gives up before the answer
	}
	if err := Play(ctx, parse(t, podSpec("p", "{containers: [{name: c, image: image}]}")), o); err != nil {
		t.Error(err)
	}
	equal(t, f.podNames())
	leftFiles(t, o)
}

func TestImages(t *testing.T) {
	for _, c := range []struct {
		name, container, want string
		pulls                 int
	}{
		{"present", "{name: c, image: image}", "", 0},
		{"missing", "{name: c, image: other}", "", 1},
		{"always", "{name: c, image: image, imagePullPolicy: Always}", "", 1},
		{"never", "{name: c, image: other, imagePullPolicy: Never}", "not present and imagePullPolicy is Never", 0},
		{"root", "{name: c, image: root, securityContext: {runAsNonRoot: true}}", "runs as root", 0},
		{"user by name", "{name: c, image: named, securityContext: {runAsNonRoot: true}}", `user name "web"`, 0},
		{"user of the manifest", "{name: c, image: root, securityContext: {runAsNonRoot: true, runAsUser: 1}}", "", 0},
		{"user of the image", "{name: c, image: number, securityContext: {runAsNonRoot: true}}", "", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			f, o := newFake(t)
			f.images["root"] = &runtimeapi.Image{Id: "root", Uid: &runtimeapi.Int64Value{Value: 0}}
			f.images["number"] = &runtimeapi.Image{Id: "number", Uid: &runtimeapi.Int64Value{Value: 1000}}
			f.images["named"] = &runtimeapi.Image{Id: "named", Username: "web"}
			err := Play(t.Context(), parse(t, podSpec("p", "{restartPolicy: Never, containers: ["+c.container+"]}")), o)
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Errorf("%v; want %q", err, c.want)
			}
			if got := len(f.notes("pull")); got != c.pulls {
				t.Errorf("%d pulls, want %d", got, c.pulls)
			}
		})
	}
}

// TestProbes checks what failing probes and hooks do to a container, which then is
// restarted and succeeds.
func TestProbes(t *testing.T) {
	for _, probe := range []string{
		"livenessProbe: {exec: {command: [check]}, periodSeconds: 1, failureThreshold: 1}",
		"startupProbe: {exec: {command: [check]}, periodSeconds: 1, failureThreshold: 1}",
		"lifecycle: {postStart: {exec: {command: [check]}}, preStop: {exec: {command: [bye]}}}",
	} {
		f, o := newFake(t)
		f.exits = func(_ string, attempt uint32) (int32, bool) { return 0, attempt > 0 }
		checks := 0
		f.exec = func(command string) int32 {
			if command != "check" {
				return 0
			}
			checks++ // the first one fails
			return int32(min(1, max(0, 2-checks)))
		}
		spec := "{restartPolicy: OnFailure, terminationGracePeriodSeconds: 1, containers: [{name: c, image: image, " + probe + "}]}"
		if err := Play(t.Context(), parse(t, podSpec("p", spec)), o); err != nil {
			t.Errorf("%s: %v", probe, err)
		}
		equal(t, f.notes("start", "stop c"), "start c/0", "stop c/0 after 1 s", "start c/1")
		if strings.Contains(probe, "preStop") && !slices.Contains(f.notes("exec"), "exec bye") {
			t.Errorf("preStop was not run: %v", f.notes("exec"))
		}
	}
}

// TestServerRestart checks that an interruption of the server is not the end of a
// container.
func TestServerRestart(t *testing.T) {
	f, o := newFake(t)
	failed := false
	f.onWait = func() error {
		if failed {
			return nil
		}
		failed = true
		return status.Error(codes.Unavailable, "the server is restarting")
	}
	if err := Play(t.Context(), parse(t, podSpec("p", "{restartPolicy: Never, containers: [{name: c, image: image}]}")), o); err != nil || !failed {
		t.Errorf("%v, %v", err, failed)
	}
	equal(t, f.notes("start"), "start c/0")
}

// TestUsers checks that pods with user namespaces of their own get different ranges.
func TestUsers(t *testing.T) {
	f, o := newFake(t)
	f.exits = func(string, uint32) (int32, bool) { return 0, false }
	set := ""
	for _, name := range []string{"a", "b"} {
		set += podSpec(name, "{hostUsers: false, containers: [{name: c, image: image}]}")
	}
	ctx, cancel := context.WithCancel(t.Context())
	up := make(chan struct{})
	o.Up = func(error) { close(up) }
	done := make(chan error, 1)
	go func() { done <- Play(ctx, parse(t, set), o) }()
	<-up
	var ranges []uint32
	f.mu.Lock()
	for _, p := range f.pods {
		ranges = append(ranges, p.config.Linux.SecurityContext.NamespaceOptions.UsernsOptions.Uids[0].HostId)
	}
	f.mu.Unlock()
	slices.Sort(ranges)
	if !slices.Equal(ranges, []uint32{65536, 131072}) {
		t.Errorf("ranges: %v", ranges)
	}
	o.Up = func(err error) { t.Errorf("a pod that could not be created was reported to be up: %v", err) }
	third := parse(t, podSpec("third", "{hostUsers: false, containers: [{name: c, image: image}]}"))
	if err := Play(t.Context(), third, o); err == nil || !strings.Contains(err.Error(), "196608 in total") {
		t.Errorf("no range is left: %v", err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	leftFiles(t, o)
}

// TestUp checks what is reported of a set of which one pod fails.
func TestUp(t *testing.T) {
	f, o := newFake(t)
	f.exits = func(name string, _ uint32) (int32, bool) { return 3, name == "bad" }
	ctx, cancel := context.WithCancel(t.Context())
	up := make(chan error, 1)
	o.Up = func(err error) { up <- err }
	done := make(chan error, 1)
	set := podSpec("a", "{restartPolicy: Never, containers: [{name: good, image: image}]}") +
		podSpec("b", "{restartPolicy: Never, initContainers: [{name: bad, image: image}], containers: [{name: c, image: image}]}")
	go func() { done <- Play(ctx, parse(t, set), o) }()
	if err := <-up; !errors.Is(err, ErrFailed) || !strings.Contains(err.Error(), "b/bad exited with code 3") {
		t.Errorf("up: %v", err)
	}
	equal(t, f.podNames(), "a", "b")
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
