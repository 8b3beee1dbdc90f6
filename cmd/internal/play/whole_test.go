package play

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/api"
)

const statefulSet = `
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  replicas: 3
  template: {spec: {containers: [{name: c, image: image, volumeMounts: [{name: d, mountPath: /d}]}]}}
  volumeClaimTemplates: [{metadata: {name: d}}]
`

// TestOrdered: a pod of a StatefulSet is handed over once the one before it is up; when
// that fails, the others are not.
func TestOrdered(t *testing.T) {
	f, o := newFake(t)
	o.Detach = true
	f.onFollow = func(_ context.Context, name string, send func(*api.FollowEvent) error) error {
		f.note("up %s", name)
		return send(&api.FollowEvent{Up: true})
	}
	if err := Play(t.Context(), parse(t, statefulSet), o); err != nil {
		t.Fatal(err)
	}
	if log := f.notes("play", "up"); !slices.Equal(log, []string{"play db-0", "up db-0", "play db-1", "up db-1", "play db-2", "up db-2"}) {
		t.Errorf("%q", log)
	}
	f, o = newFake(t)
	f.onFollow = func(_ context.Context, name string, send func(*api.FollowEvent) error) error {
		return send(&api.FollowEvent{Final: true, Failed: name == "db-1", Reason: "c exited with code 1"})
	}
	err := Play(t.Context(), parse(t, statefulSet), o)
	if !errors.Is(err, ErrFailed) || !strings.Contains(err.Error(), "pod db-2 was not started, since db-1 is not up") {
		t.Errorf("%v", err)
	}
	if pods := f.podNames(); !slices.Equal(pods, []string{"db-0", "db-1"}) {
		t.Errorf("%v", pods)
	}
}

const job = `
apiVersion: batch/v1
kind: Job
metadata: {name: job}
spec: {completions: 6, parallelism: 2, template: {spec: {restartPolicy: Never, containers: [{name: c, image: image}]}}}
`

// TestQueue: of a Job as many pods run at the same time as it allows, also with Detach;
// when one fails the others are not started.
func TestQueue(t *testing.T) {
	f, o := newFake(t)
	o.Detach = true
	var running, most atomic.Int32
	f.onPlay = func(string) error {
		if n := running.Add(1); n > most.Load() {
			most.Store(n)
		}
		return nil
	}
	f.onFollow = func(_ context.Context, _ string, send func(*api.FollowEvent) error) error {
		err := send(&api.FollowEvent{Up: true})
		running.Add(-1)
		return errors.Join(err, send(&api.FollowEvent{Final: true}))
	}
	if err := Play(t.Context(), parse(t, job), o); err != nil {
		t.Fatal(err)
	}
	if len(f.podNames()) != 6 || most.Load() > 2 {
		t.Errorf("%v, %d at the same time", f.podNames(), most.Load())
	}
	f, o = newFake(t)
	f.onFollow = func(_ context.Context, _ string, send func(*api.FollowEvent) error) error {
		return send(&api.FollowEvent{Final: true, Failed: true, Reason: "c exited with code 1"})
	}
	if err := Play(t.Context(), parse(t, strings.Replace(job, "parallelism: 2", "parallelism: 1", 1)), o); !errors.Is(err, ErrFailed) || len(f.podNames()) != 1 {
		t.Errorf("%v, %v", err, f.podNames())
	}
}

// TestWhole: when one pod of a set cannot be made, none is left, nor the volumes that were
// made for it and are empty.
func TestWhole(t *testing.T) {
	for _, written := range []bool{false, true} {
		f, o := newFake(t)
		volume := filepath.Join(o.DataDir, "volumes", "d-db-0")
		f.onPlay = func(name string) error {
			if name != "db-1" {
				return nil
			}
			if written {
				return errors.Join(os.WriteFile(filepath.Join(volume, "x"), nil, 0o600), status.Error(codes.Internal, "no room"))
			}
			return status.Error(codes.Internal, "no room")
		}
		f.onFollow = func(ctx context.Context, _ string, send func(*api.FollowEvent) error) error {
			if err := send(&api.FollowEvent{Up: true}); err != nil {
				return err
			}
			<-ctx.Done()
			return ctx.Err()
		}
		err := Play(t.Context(), parse(t, statefulSet), o)
		if err == nil || !strings.Contains(err.Error(), "pod db-1: ") || !strings.Contains(err.Error(), "no room") {
			t.Errorf("%v", err)
		}
		if pods := f.podNames(); len(pods) > 0 {
			t.Errorf("left %v", pods)
		}
		leftFiles(t, o)
		left, _ := filepath.Glob(filepath.Join(o.DataDir, "volumes", "*"))
		if want := fmt.Sprint(map[bool][]string{false: nil, true: {volume}}[written]); fmt.Sprint(left) != want {
			t.Errorf("written %v: %v", written, left)
		}
	}
}

// TestVolumesOfAnother: where another client has been quicker with the same set, the volumes
// are those of its pods, whoever has made them.
func TestVolumesOfAnother(t *testing.T) {
	f, o := newFake(t)
	f.making = func(_ context.Context, name string) {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.pods["another's"] = &fakePod{&runtimeapi.PodSandboxConfig{
			Metadata: &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "default"}, Labels: map[string]string{api.LabelMadeBy: api.MadeByPlay},
		}, runtimeapi.PodSandboxState_SANDBOX_READY}
	}
	if err := Play(t.Context(), parse(t, statefulSet), o); !errors.Is(err, ErrExists) {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(filepath.Join(o.DataDir, "volumes", "d-db-0")); err != nil {
		t.Error(err)
	}
}

// TestWholeInTheMaking: a pod that the server is making, when another one of the set cannot
// be made or the command is interrupted, is not left either: a server goes on with what it
// has begun.
func TestWholeInTheMaking(t *testing.T) {
	for _, interrupted := range []bool{false, true} {
		f, o := newFake(t)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		slow, failed, returned, made := make(chan struct{}), make(chan struct{}), make(chan struct{}), make(chan struct{})
		f.making = func(ctx context.Context, name string) {
			if name == "bad" {
				<-slow
				return
			}
			close(slow)
			<-failed
			select {
			case <-ctx.Done(): // nobody waits
				<-returned
			case <-time.After(100 * time.Millisecond):
			}
		}
		f.onPlay = func(name string) error {
			if name != "bad" {
				close(made)
				return nil
			}
			defer close(failed)
			if interrupted {
				cancel()
			}
			return status.Error(codes.Internal, "no room")
		}
		const spec = "{containers: [{name: c, image: image}]}"
		err := Play(ctx, parse(t, podSpec("bad", spec)+podSpec("slow", spec)), o)
		close(returned)
		<-made
		if interrupted != (err == nil) {
			t.Errorf("interrupted %v: %v", interrupted, err)
		}
		if pods := f.podNames(); len(pods) > 0 {
			t.Errorf("interrupted %v: left %v", interrupted, pods)
		}
		leftFiles(t, o)
	}
}

// TestDownWorkload: also the replicas are removed that a workload no longer has, and
// nothing of others.
func TestDownWorkload(t *testing.T) {
	f, o := newFake(t)
	if err := Play(t.Context(), parse(t, statefulSet+podSpec("db-9", "{containers: [{name: c, image: image}]}")), o); err != nil {
		t.Fatal(err)
	}
	if err := Down(t.Context(), parse(t, strings.Replace(statefulSet, "replicas: 3", "replicas: 1", 1)), o); err != nil {
		t.Fatal(err)
	}
	if pods := f.podNames(); !slices.Equal(pods, []string{"db-9"}) {
		t.Errorf("%v", pods)
	}
	for _, none := range []string{"replicas: 0", "replicas: 0, ordinals: {start: 9}"} {
		if err := Play(t.Context(), parse(t, statefulSet), o); err != nil {
			t.Fatal(err)
		}
		if err := Down(t.Context(), parse(t, strings.Replace(statefulSet, "replicas: 3", strings.Replace(none, ", ", "\n  ", 1), 1)), o); err != nil {
			t.Fatal(err)
		}
		if pods := f.podNames(); !slices.Equal(pods, []string{"db-9"}) {
			t.Errorf("%s: %v", none, pods)
		}
	}
}

// TestPullOnce: the replicas of a workload do not pull the same image each.
func TestPullOnce(t *testing.T) {
	f, o := newFake(t)
	set := parse(t, strings.Replace(statefulSet, "image: image", "image: other, imagePullPolicy: Always", 1))
	if err := Play(t.Context(), set, o); err != nil {
		t.Fatal(err)
	}
	if log := f.notes("pull"); !slices.Equal(log, []string{"pull other"}) {
		t.Errorf("%q", log)
	}
}
