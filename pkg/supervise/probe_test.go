package supervise

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/subpod/subpod/pkg/workload"
)

// TestProbeDelay: the delay of a probe is before its first one only, and counts from the
// container's start: also under another server.
func TestProbeDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := containerOf("a", workload.Main, workload.UnlessStopped)
		c.Readiness = &workload.Probe{Command: []string{"ready"}, Delay: 30 * time.Second, Period: time.Second, Timeout: time.Second, Successes: 1, Failures: 3}
		f := newFake(play(c))
		begin := time.Now()
		var mu sync.Mutex
		var asked []time.Duration
		f.exec = func(string, string) int32 {
			mu.Lock()
			defer mu.Unlock()
			asked = append(asked, time.Since(begin))
			return map[bool]int32{true: 1, false: 0}[time.Since(begin) < 40*time.Second]
		}
		s := f.serve(t)
		time.Sleep(45 * time.Second)
		s.Close()
		if n := len(asked); n < 14 || asked[0] < 30*time.Second {
			t.Errorf("asked %d times in the 15 s after the delay: %v", n, asked)
		}
		before := len(asked)
		s = f.serve(t)
		defer s.Close()
		time.Sleep(5 * time.Second)
		mu.Lock()
		defer mu.Unlock()
		if n := len(asked) - before; n < 4 {
			t.Errorf("asked %d times in 5 s by the next server", n)
		}
	})
}

// TestHookOnce: a postStart hook is carried out once for each run: not again by the next
// server, whose container it could end.
func TestHookOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := containerOf("a", workload.Main, workload.UnlessStopped)
		c.PostStart = &workload.Hook{Command: []string{"mkdir", "/x"}}
		f := newFake(play(c))
		f.ends = func(_ string, run int) (time.Duration, int32, bool) { return time.Minute, 1, run == 0 }
		var mu sync.Mutex
		hooks := 0
		f.exec = func(string, string) int32 {
			mu.Lock()
			defer mu.Unlock()
			hooks++
			return 0
		}
		s := f.serve(t)
		time.Sleep(time.Second)
		s.Close()
		s = f.serve(t)
		defer s.Close()
		time.Sleep(time.Second)
		mu.Lock()
		if hooks != 1 || f.count("end a") != 0 {
			t.Errorf("%d hooks, %v", hooks, f.log)
		}
		mu.Unlock()
		time.Sleep(2 * time.Minute)
		mu.Lock()
		defer mu.Unlock()
		if hooks != 2 || f.count("start a") != 2 {
			t.Errorf("after a restart: %d hooks, %v", hooks, f.log)
		}
	})
}
