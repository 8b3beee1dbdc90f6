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

	"github.com/subpod/subpod/cmd/internal/kube"
	"github.com/subpod/subpod/pkg/api"
	"github.com/subpod/subpod/pkg/workload"
)

func removeAll(dir string) error { return os.RemoveAll(dir) }

// leftFiles checks that no pod has left files.
func leftFiles(t *testing.T, o Options) {
	t.Helper()
	for _, dir := range []string{"play", "logs"} {
		if left, err := filepath.Glob(filepath.Join(o.DataDir, dir, "*")); err != nil || len(left) > 0 {
			t.Errorf("left behind: %v, %v", left, err)
		}
	}
}

// TestHandOver: the server is given the whole pod at once, in order, with all images there.
func TestHandOver(t *testing.T) {
	f, o := newFake(t)
	set := parse(t, podSpec("web", `{restartPolicy: OnFailure, terminationGracePeriodSeconds: 7, activeDeadlineSeconds: 60,
  initContainers: [{name: init, image: other}, {name: side, image: image, restartPolicy: Always, startupProbe: {tcpSocket: {port: 1}}}],
  containers: [{name: main, image: image, env: [{name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}], livenessProbe: {grpc: {port: 2, service: x}, periodSeconds: 3}}]}`))
	if err := Play(t.Context(), set, o); err != nil {
		t.Fatal(err)
	}
	if log := f.notes("pull", "play"); !slices.Equal(log, []string{"pull other", "play web"}) {
		t.Errorf("%v", log)
	}
	spec := f.specs["web"]
	var got []string
	for _, c := range spec.Containers {
		got = append(got, c.Name+" "+c.Role+" "+c.Restart.Name)
	}
	if !slices.Equal(got, []string{"init init on-failure", "side sidecar unless-stopped", "main main on-failure"}) {
		t.Errorf("%v", got)
	}
	if spec.Grace != 7*time.Second || spec.Deadline != time.Minute || spec.Containers[1].Startup.TCP.Port != 1 {
		t.Errorf("%+v", spec)
	}
	if p := spec.Containers[2].Liveness; p.GRPC == nil || p.GRPC.Port != 2 || p.GRPC.Service != "x" || p.Period != 3*time.Second || p.Failures != 3 {
		t.Errorf("%+v", p)
	}
	if !strings.Contains(string(spec.Containers[2].Config), workload.PodIP) {
		t.Error("the pod's address has no placeholder")
	}
}

// TestFollow: the command goes on following across a restart of the server, and its end
// is the pod's.
func TestFollow(t *testing.T) {
	f, o := newFake(t)
	calls := 0
	f.onFollow = func(_ context.Context, name string, send func(*api.FollowEvent) error) error {
		if calls++; calls == 1 {
			return status.Error(codes.Unavailable, "the server is being replaced")
		}
		return send(&api.FollowEvent{Final: true, Failed: true, Reason: "main exited with code 3", Text: name + ": failed"})
	}
	err := Play(t.Context(), parse(t, podSpec("web", "{containers: [{name: main, image: image}]}")), o)
	if !errors.Is(err, ErrFailed) || !strings.Contains(err.Error(), "web/main exited with code 3") || calls != 2 {
		t.Errorf("%v, %d calls", err, calls)
	}
	if pods := f.podNames(); !slices.Equal(pods, []string{"web"}) {
		t.Errorf("a failed pod is kept: %v", pods)
	}
}

// TestDetach: with Detach the command ends once the pods are up, and they go on.
func TestDetach(t *testing.T) {
	f, o := newFake(t)
	o.Detach = true
	f.onFollow = func(ctx context.Context, _ string, send func(*api.FollowEvent) error) error {
		if err := send(&api.FollowEvent{Up: true}); err != nil {
			return err
		}
		<-ctx.Done()
		return ctx.Err()
	}
	set := parse(t, podSpec("a", "{containers: [{name: c, image: image}]}")+podSpec("b", "{containers: [{name: c, image: image}]}"))
	if err := Play(t.Context(), set, o); err != nil {
		t.Fatal(err)
	}
	if pods := f.podNames(); !slices.Equal(pods, []string{"a", "b"}) {
		t.Errorf("%v", pods)
	}
	if err := Down(t.Context(), set, o); err != nil {
		t.Fatal(err)
	}
	leftFiles(t, o)
}

// TestInterrupted: Ctrl-C takes down what the command has made, wherever it comes, and
// nothing of others.
func TestInterrupted(t *testing.T) {
	for _, when := range []string{"while it is made", "while it runs"} {
		f, o := newFake(t)
		ctx, cancel := context.WithCancel(t.Context())
		f.onPlay = func(name string) error {
			if when == "while it is made" {
				cancel()
				return status.Error(codes.Canceled, "cancelled")
			}
			return nil
		}
		f.onFollow = func(ctx context.Context, _ string, _ func(*api.FollowEvent) error) error {
			cancel()
			<-ctx.Done()
			return ctx.Err()
		}
		if err := Play(ctx, parse(t, podSpec("web", "{containers: [{name: c, image: image}]}")), o); err != nil {
			t.Errorf("%s: %v", when, err)
		}
		if pods := f.podNames(); len(pods) > 0 {
			t.Errorf("%s: left %v", when, pods)
		}
		leftFiles(t, o)
	}
}

// TestNameTaken: a set is run as a whole or not at all.
func TestNameTaken(t *testing.T) {
	f, o := newFake(t)
	if err := Play(t.Context(), parse(t, podSpec("b", "{containers: [{name: c, image: image}]}")), o); err != nil {
		t.Fatal(err)
	}
	set := parse(t, podSpec("a", "{containers: [{name: c, image: image}]}")+podSpec("b", "{containers: [{name: c, image: image}]}"))
	if err := Play(t.Context(), set, o); !errors.Is(err, ErrExists) {
		t.Errorf("%v", err)
	}
	if pods := f.podNames(); !slices.Equal(pods, []string{"b"}) {
		t.Errorf("%v", pods)
	}
}

// TestImages: pull policies, and images whose user is root where that is excluded.
func TestImages(t *testing.T) {
	f, o := newFake(t)
	err := Play(t.Context(), parse(t, podSpec("a", "{containers: [{name: c, image: nosuch, imagePullPolicy: Never}]}")), o)
	if err == nil || !strings.Contains(err.Error(), "is not present and imagePullPolicy is Never") {
		t.Errorf("%v", err)
	}
	err = Play(t.Context(), parse(t, podSpec("a", "{securityContext: {runAsNonRoot: true}, containers: [{name: c, image: image}]}")), o)
	if !errors.Is(err, kube.ErrManifest) {
		t.Errorf("%v", err)
	}
	if pods := f.podNames(); len(pods) > 0 {
		t.Errorf("%v", pods)
	}
	leftFiles(t, o)
}

// TestPreStop: hooks of a pod that is removed have its grace period, as in a cluster, and
// no more; without one they are left out.
func TestPreStop(t *testing.T) {
	f, o := newFake(t)
	f.running = []string{"side", "slow", "sleepy"}
	manifest := func(grace string) string {
		return podSpec("web", `{terminationGracePeriodSeconds: `+grace+`,
  initContainers: [{name: side, image: image, restartPolicy: Always, lifecycle: {preStop: {exec: {command: [bye]}}}}],
  containers: [{name: slow, image: image, lifecycle: {preStop: {exec: {command: [wait]}}}}, {name: sleepy, image: image, lifecycle: {preStop: {sleep: {seconds: 3600}}}}]}`)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for _, grace := range []string{"3", "0"} { // within 1 s not all hooks may have begun
		set := parse(t, manifest(grace))
		if err := errors.Join(Play(ctx, set, o), Down(ctx, set, o)); err != nil {
			t.Fatalf("grace %s: %v", grace, err)
		}
	}
	got := f.notes("exec", "stop s")
	slices.Sort(got)
	// After a hook each has 2 s, as a kubelet gives it.
	if want := []string{"exec side bye", "exec slow wait", "stop side 0", "stop side 2", "stop sleepy 0", "stop sleepy 2", "stop slow 0", "stop slow 2"}; !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	leftFiles(t, o)
}
