package supervise

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/subpod/subpod/pkg/state"
	"github.com/subpod/subpod/pkg/workload"
)

// TestStartAfterFailure: once what was missing is there, a start succeeds: an earlier
// failure says nothing about it, and its pause is not waited for.
func TestStartAfterFailure(t *testing.T) {
	for _, policy := range []string{workload.No, workload.UnlessStopped} {
		synctest.Test(t, func(t *testing.T) {
			f := newFake(play(containerOf("a", workload.Main, policy)))
			f.make = errors.New("the image is gone")
			s := f.serve(t)
			defer s.Close()
			time.Sleep(2 * time.Hour)
			f.mu.Lock()
			f.make = nil
			f.mu.Unlock()
			begin := time.Now()
			if err := s.StartPod(t.Context(), "pod", ""); err != nil || f.count("start a") != 1 || time.Since(begin) > time.Second {
				t.Errorf("%s: %v, %v after %v", policy, err, f.log, time.Since(begin))
			}
		})
	}
}

// TestInterrupted: a step that another request has interrupted is tried again, without a
// warning, and is no failure of the container.
func TestInterrupted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(play(containerOf("a", workload.Main, workload.No)))
		f.make = errdefs.ErrAborted
		var log bytes.Buffer
		s := New(Options{NodeID: "node", Pods: f, Records: f, Sessions: f, Volumes: func(string) string { return "" }, Log: slog.New(slog.NewTextHandler(&log, nil))})
		s.Start()
		synctest.Wait()
		f.mu.Lock()
		f.make = nil
		f.mu.Unlock()
		time.Sleep(time.Minute)
		if f.count("start a") != 1 || f.count("finish") != 0 {
			t.Errorf("%v, %+v", f.log, f.pod.Supervision)
		}
		s.Close()
		if log.Len() > 0 {
			t.Errorf("%s", &log)
		}
	})
}

// TestStartInPause: a start does not wait for the pause before a restart.
func TestStartInPause(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(play(containerOf("a", workload.Main, workload.UnlessStopped), containerOf("b", workload.Main, workload.UnlessStopped)))
		f.ends = func(name string, run int) (time.Duration, int32, bool) { return time.Second, 1, name == "a" && run < 6 }
		s := f.serve(t)
		defer s.Close()
		for f.count("start a") < 6 {
			time.Sleep(time.Second)
		}
		time.Sleep(3 * time.Second)
		begin := time.Now()
		if err := s.StartPod(t.Context(), "pod", ""); err != nil || f.count("start a") != 7 || f.count("start b") != 1 || time.Since(begin) > time.Second {
			t.Errorf("%v, %v after %v", err, f.log, time.Since(begin))
		}
	})
}

// TestStartOfStopped: the start of a pod starts a container that its user had stopped.
func TestStartOfStopped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(play(containerOf("a", workload.Main, workload.UnlessStopped), containerOf("b", workload.Main, workload.UnlessStopped)))
		s := f.serve(t)
		defer s.Close()
		synctest.Wait()
		if err := errors.Join(f.MarkStopped(t.Context(), "id-a"), f.End(t.Context(), "id-a", 0)); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if err := s.StartPod(t.Context(), "pod", ""); err != nil || f.count("start a") != 2 || f.count("start b") != 1 {
			t.Errorf("%v, %v", err, f.log)
		}
	})
}

// TestRestartOfOne: a container that is restarted is alone in that: the pod sandbox
// stays, although nothing else runs in it, and also when its client leaves.
func TestRestartOfOne(t *testing.T) {
	for _, leaves := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			f := newFake(play(containerOf("a", workload.Main, workload.OnFailure)))
			s := f.serve(t)
			defer s.Close()
			synctest.Wait()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if leaves {
				f.ending = cancel
			}
			_ = s.RestartPod(ctx, "pod", "id-a", time.Second)
			synctest.Wait()
			if f.count("finish") > 0 || f.count("start a") != 2 || !f.pod.Supervised() {
				t.Errorf("leaves %v: %v, %+v", leaves, f.log, f.pod.Supervision)
			}
		})
	}
}

// TestRestartOutlivesServer: the restart of a whole pod, whose server ends in the grace
// period, is carried out by the next one; not what its user has stopped meanwhile.
func TestRestartOutlivesServer(t *testing.T) {
	for _, stops := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			f := newFake(play(containerOf("a", workload.Main, workload.No), containerOf("b", workload.Main, workload.No)))
			s := f.serve(t)
			synctest.Wait()
			f.ending = func() { s.cancel(); time.Sleep(time.Second) }
			if err := s.RestartPod(t.Context(), "pod", "", 10*time.Second); err == nil {
				t.Error("no error")
			}
			s.Close()
			f.ending = nil
			if stops {
				f.stopPod()
			}
			s = f.serve(t)
			defer s.Close()
			time.Sleep(time.Minute)
			want := map[bool]int{false: 2, true: 1}[stops]
			if f.count("start a") != want || f.count("start b") != want || f.pod.Supervised() == stops {
				t.Errorf("stops %v: %v, %+v", stops, f.log, f.pod.Supervision)
			}
		})
	}
}

// TestRestartCannotEnd: a pod of which something does not end is stopped, and can be
// started.
func TestRestartCannotEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(play(containerOf("a", workload.Main, workload.UnlessStopped), containerOf("b", workload.Main, workload.UnlessStopped)))
		s := f.serve(t)
		defer s.Close()
		synctest.Wait()
		f.ending = func() { time.Sleep(time.Hour) }
		if err := s.RestartPod(t.Context(), "pod", "", time.Second); err == nil || f.pod.Supervised() {
			t.Errorf("%v, %+v", err, f.pod.Supervision)
		}
		if err := s.StartPod(t.Context(), "pod", ""); err != nil || !f.pod.Supervised() {
			t.Errorf("%v, %+v", err, f.pod.Supervision)
		}
	})
}

// TestStopDuringResume: what its user stops in the new node stays stopped, also where the
// supervisor has just decided to resume it.
func TestStopDuringResume(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(play(containerOf("a", workload.Main, workload.Always)))
		f.pod.Supervision = workload.Status{Stopped: true, StoppedIn: "before"}.With("a", workload.Progress{Ran: true})
		f.pod.Status.Phase = state.PodNotReady
		f.before = func() { f.pod.Supervision.StoppedIn = "node" }
		s := f.serve(t)
		defer s.Close()
		time.Sleep(time.Hour)
		f.mu.Lock()
		defer f.mu.Unlock()
		if len(f.log) > 0 || f.pod.Supervised() {
			t.Errorf("%v, %+v", f.log, f.pod.Supervision)
		}
	})
}

// TestStartDuringFinish: what its user starts is not finished, also where the supervisor
// has just decided that; what is finished is so after a crash in between.
func TestStartDuringFinish(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(play(containerOf("a", workload.Main, workload.No)))
		f.ends = func(_ string, run int) (time.Duration, int32, bool) { return time.Second, 0, run == 0 }
		s := f.serve(t)
		defer s.Close()
		synctest.Wait()
		f.mu.Lock()
		f.before = func() { f.pod.Supervision = f.pod.Supervision.With("a", workload.Progress{}) }
		f.mu.Unlock()
		time.Sleep(time.Minute)
		if f.count("start a") != 2 || f.count("finish") != 0 || !f.pod.Supervised() {
			t.Errorf("%v, %+v", f.log, f.pod.Supervision)
		}
	})
	for _, st := range []workload.Status{
		workload.Status{Done: true}.With("a", workload.Progress{Ran: true}),
		workload.Status{Stopped: true}.With("a", workload.Progress{Ran: true, Stopped: true}),
	} {
		synctest.Test(t, func(t *testing.T) {
			f := newFake(play(containerOf("a", workload.Main, workload.No)))
			f.pod.Supervision = st
			s := f.serve(t)
			defer s.Close()
			time.Sleep(time.Minute)
			if f.count("finish") != 1 || len(f.log) != 1 {
				t.Errorf("%+v: %v", st, f.log)
			}
		})
	}
}

// TestPreStopOutlivesRun: a container that ends in its preStop hook is not stopped once
// more, when it runs again.
func TestPreStopOutlivesRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := containerOf("a", workload.Main, workload.UnlessStopped)
		c.Liveness = &workload.Probe{Command: []string{"alive"}, Period: time.Second, Timeout: time.Second, Successes: 1, Failures: 3}
		c.PreStop = &workload.Hook{Sleep: 10 * time.Second}
		f := newFake(play(c))
		f.pod.Workload.Grace = 30 * time.Second
		f.ends = func(_ string, run int) (time.Duration, int32, bool) { return 5 * time.Second, 1, run == 0 }
		begin := time.Now()
		f.exec = func(string, string) int32 {
			return map[bool]int32{true: 1, false: 0}[time.Since(begin) < 4*time.Second]
		}
		s := f.serve(t)
		defer s.Close()
		time.Sleep(time.Minute)
		if f.count("end a") != 0 || f.count("start a") != 2 {
			t.Errorf("%v", f.log)
		}
	})
}

// TestCloseDuringStop: the server's end does not wait for a container that takes its time.
func TestCloseDuringStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := containerOf("a", workload.Main, workload.UnlessStopped)
		c.Liveness = &workload.Probe{Command: []string{"alive"}, Period: time.Second, Timeout: time.Second, Successes: 1, Failures: 1}
		c.PreStop = &workload.Hook{Sleep: time.Hour}
		f := newFake(play(c))
		f.pod.Workload.Grace = time.Hour
		f.exec = func(string, string) int32 { return 1 }
		s := f.serve(t)
		time.Sleep(time.Minute)
		begin := time.Now()
		s.Close()
		if d := time.Since(begin); d > time.Second {
			t.Errorf("closed after %v", d)
		}
	})
}

// TestFollowBeforeStart: a client that comes before the pods are looked at is not told
// that its pod was stopped.
func TestFollowBeforeStart(t *testing.T) {
	f := newFake(play(containerOf("a", workload.Main, workload.UnlessStopped)))
	s := New(Options{NodeID: "node", Pods: f, Records: f, Sessions: f})
	err := s.Follow(t.Context(), "pod", func(e Event) error { t.Errorf("%+v", e); return nil })
	if err == nil {
		t.Error("no error")
	}
}

// TestEndlessHeader: of an answer that does not end, a part is read.
func TestEndlessHeader(t *testing.T) {
	client, server := net.Pipe()
	defer client.Close()
	var sent atomic.Int64
	go func() {
		_, _ = io.CopyN(io.Discard, server, 1)
		go func() { _, _ = io.Copy(io.Discard, server) }()
		_, _ = io.WriteString(server, "HTTP/1.1 200 OK\r\n")
		for line := []byte("X-A: 0123456789\r\n"); sent.Load() < 64<<20; {
			n, err := server.Write(line)
			if sent.Add(int64(n)); err != nil {
				return
			}
		}
		server.Close()
	}()
	if _, err := get(t.Context(), client, &workload.HTTP{}); err == nil || sent.Load() > 2*maxAnswer {
		t.Errorf("%v, after %d bytes", err, sent.Load())
	}
}

// TestHalfRenamed: a container whose server has died in a rename, before its pod had the
// name, is the pod's all the same.
func TestHalfRenamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(play(workload.Container{Name: "old", Role: workload.Main, Restart: workload.Policy{Name: workload.Always}}))
		f.pod.Supervision = f.pod.Supervision.With("old", workload.Progress{Ran: true})
		if _, err := f.CreateContainer(t.Context(), "pod", &runtimeapi.ContainerConfig{Metadata: &runtimeapi.ContainerMetadata{Name: "new"}}); err != nil {
			t.Fatal(err)
		}
		f.containers[0].Status.StartedAt = time.Now()
		s := f.serve(t)
		defer s.Close()
		time.Sleep(time.Minute)
		if len(f.log) > 0 || len(f.containers) > 1 {
			t.Errorf("%v", f.log)
		}
		_ = f.End(t.Context(), "id-new", 0)
		time.Sleep(time.Minute)
		if f.count("start new") != 1 {
			t.Errorf("%v", f.log)
		}
	})
}

// TestUnhealthyAndStopped: a container that fails its health check while its user stops it
// stays stopped, also where the stop comes while it is ended to be restarted; one that nobody
// stops is restarted.
func TestUnhealthyAndStopped(t *testing.T) {
	for _, stops := range []string{"never", "before", "meanwhile"} {
		for _, made := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				f := newFake(play(containerOf("a", workload.Main, workload.Always)))
				s := f.serve(t)
				defer s.Close()
				synctest.Wait()
				if made {
					f.pod.Workload.Containers[0].Config = nil
				}
				stop := func() { _ = f.MarkStopped(t.Context(), "id-a") }
				switch stops {
				case "before":
					stop()
				case "meanwhile":
					f.ending = stop
				}
				if err := s.RestartUnhealthy(t.Context(), "pod", "id-a", time.Second); err != nil {
					t.Error(err)
				}
				synctest.Wait()
				want := map[bool]int{true: 2, false: 1}[stops == "never"]
				if f.count("start a") != want || f.pod.Supervision.Containers["a"].Stopped == (stops == "never") {
					t.Errorf("stops %s, made by a request %v: %v, %+v", stops, made, f.log, f.pod.Supervision)
				}
			})
		}
	}
}

// TestUnhealthyOfStoppedPod: the same for a pod that has no policy, whose stop is on record in
// its phase only.
func TestUnhealthyOfStoppedPod(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(nil)
		s := f.serve(t)
		defer s.Close()
		id, err := f.CreateContainer(t.Context(), "pod", &runtimeapi.ContainerConfig{Metadata: &runtimeapi.ContainerMetadata{Name: "a"}})
		if err := errors.Join(err, f.StartAgain(t.Context(), id, nil, false, func(state.Pod) bool { return true })); err != nil {
			t.Fatal(err)
		}
		f.ending = func() {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.pod.Status.Phase = state.PodNotReady
		}
		if err := s.RestartUnhealthy(t.Context(), "pod", id, time.Second); err != nil {
			t.Error(err)
		}
		if f.count("start a") != 1 || f.count("rebuild") > 0 {
			t.Errorf("%v", f.log)
		}
	})
}

// TestPauseAfterStart: what is started in a sandbox that was built again is restarted by its
// policy with the pause before a first restart.
func TestPauseAfterStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake(play(containerOf("a", workload.Main, workload.UnlessStopped)))
		f.pod.Workload.Containers[0].Config = nil // a request has made it
		f.pod.Workload.Backoff = workload.RunBackoff
		if _, err := f.CreateContainer(t.Context(), "pod", &runtimeapi.ContainerConfig{Metadata: &runtimeapi.ContainerMetadata{Name: "a"}}); err != nil {
			t.Fatal(err)
		}
		f.ends = func(_ string, run int) (time.Duration, int32, bool) { return time.Second, 1, run == 1 }
		s := f.serve(t)
		defer s.Close()
		synctest.Wait()
		if err := f.End(t.Context(), "id-a", 0); err != nil {
			t.Fatal(err)
		}
		f.stopPod()
		synctest.Wait()
		if err := s.StartPod(t.Context(), "pod", ""); err != nil || f.count("rebuild") != 1 || f.count("start a") != 2 {
			t.Fatalf("%v, %v", err, f.log)
		}
		time.Sleep(time.Second + workload.RunBackoff.First/2)
		if n := f.count("start a"); n != 2 {
			t.Errorf("restarted before its pause: %v", f.log)
		}
		time.Sleep(workload.RunBackoff.First)
		if n := f.count("start a"); n != 3 {
			t.Errorf("not restarted after its pause: %v", f.log)
		}
	})
}

// TestLookDuringStart: a container of "run" that its user starts again is started, also
// when the supervisor looks at the end of its last run only then.
func TestLookDuringStart(t *testing.T) {
	for _, policy := range []string{workload.No, workload.OnFailure} {
		synctest.Test(t, func(t *testing.T) {
			made := workload.Container{Name: "a", Role: workload.Main, Restart: workload.Policy{Name: policy}}
			f := newFake(play(made))
			f.pod.Supervision.Stopped = true
			cfg := &runtimeapi.ContainerConfig{Metadata: &runtimeapi.ContainerMetadata{Name: "a"}}
			if _, err := f.CreateContainer(t.Context(), "pod", cfg); err != nil {
				t.Fatal(err)
			}
			s := f.serve(t)
			defer s.Close()
			if err := s.StartPod(t.Context(), "pod", ""); err != nil {
				t.Fatal(err)
			}
			f.building = func() {
				s.Kick("pod")
				synctest.Wait()
			}
			if err := s.RestartPod(t.Context(), "pod", "id-a", 0); err != nil {
				t.Errorf("%s: restart: %v", policy, err)
			}
			synctest.Wait()
			if f.count("start a") != 2 || !f.pod.Supervised() {
				t.Errorf("%s: after a restart %v, %+v", policy, f.log, f.pod.Supervision)
			}
			f.building = nil
			f.mu.Lock()
			started := f.containers[0].Status.StartedAt
			f.mu.Unlock()
			f.exit("id-a", started, 0)
			synctest.Wait()
			if f.pod.Supervised() {
				t.Errorf("%s: its end is not seen: %+v", policy, f.pod.Supervision)
			}
			f.building = func() {
				s.Kick("pod")
				synctest.Wait()
			}
			if err := s.StartPod(t.Context(), "pod", ""); err != nil || f.count("start a") != 3 {
				t.Errorf("%s: start: %v, %v", policy, err, f.log)
			}
		})
	}
}
