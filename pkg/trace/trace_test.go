package trace_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/subpod/subpod/pkg/trace"
)

func all(*trace.Trace) bool { return true }

// TestTree: steps have their parents, starts and durations, and a failure stays with its
// step.
func TestTree(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r trace.Recorder
		ctx, root := r.Begin(t.Context(), "Run", trace.Remote{})
		trace.Set(ctx, "pod", "abc")
		time.Sleep(time.Millisecond)
		outer, step := trace.Start(ctx, "network")
		time.Sleep(2 * time.Millisecond)
		bad := errors.New("bad")
		err := trace.Do(outer, "address", func() error { time.Sleep(3 * time.Millisecond); return bad })
		step.End(nil)
		step.End(errors.New("a second end counts for nothing"))
		_, open := trace.Start(ctx, "goes on")
		time.Sleep(time.Millisecond)
		r.End(root, "Unknown", err.Error())
		open.End(nil)
		trace.Set(ctx, "late", "x")
		if _, s := trace.Start(ctx, "late"); s != nil {
			t.Error("a step begins after the end of its request")
		}
		got := r.Recent(10, all)
		if len(got) != 1 {
			t.Fatalf("%d traces", len(got))
		}
		x := got[0]
		want := []trace.StepTime{
			{Name: "network", Parent: -1, Start: time.Millisecond, Took: 5 * time.Millisecond},
			{Name: "address", Parent: 0, Start: 3 * time.Millisecond, Took: 3 * time.Millisecond, Failed: true},
			{Name: "goes on", Parent: -1, Start: 6 * time.Millisecond, Took: time.Millisecond, Unended: true},
		}
		if fmt.Sprint(x.Steps) != fmt.Sprint(want) || x.Name != "Run" || x.Code != "Unknown" || x.Error != "bad" || x.Took != 7*time.Millisecond || fmt.Sprint(x.Attributes) != "map[pod:abc]" {
			t.Errorf("trace %+v", x)
		}
	})
}

// TestNone: without a trace every call is allowed and does nothing.
func TestNone(t *testing.T) {
	ctx, step := trace.Start(t.Context(), "x")
	step.End(nil)
	trace.Set(ctx, "a", "b")
	trace.Finish(ctx, "OK", "")
	ran := false
	if err := trace.Do(ctx, "y", func() error { ran = true; return nil }); err != nil || !ran {
		t.Errorf("%v, %v", err, ran)
	}
	var r *trace.Recorder
	ctx, step = r.Begin(ctx, "z", trace.Remote{})
	r.End(step, "OK", "")
	if r.Recent(1, all) != nil || r.Slowest(1, all) != nil || ctx != t.Context() {
		t.Error("a nil recorder records")
	}
}

// TestKept: reading requests are kept only when they are slow or fail; the slowest of the
// last hour outlive the others; and all of it is bounded.
func TestKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r trace.Recorder
		request := func(name, text string, steps int, took time.Duration) {
			ctx, root := r.Begin(t.Context(), name, trace.Remote{})
			for range steps {
				_ = trace.Do(ctx, "step", func() error { return nil })
			}
			time.Sleep(took)
			r.End(root, "OK", text)
		}
		request("list", "", 0, time.Millisecond)
		if got := r.Recent(10, all); got != nil {
			t.Errorf("a quick list is kept: %v", got)
		}
		request("list", "failed", 0, time.Millisecond)
		request("list", "", 0, time.Second)
		request("slow", "", 1, time.Minute)
		if got := r.Recent(10, all); len(got) != 3 {
			t.Errorf("%d traces, want 3", len(got))
		}
		for range 2000 {
			request("pod", "", 20, time.Millisecond)
		}
		recent := r.Recent(1e6, all)
		steps := 0
		for _, x := range recent {
			steps += len(x.Steps)
		}
		if len(recent) < 100 || len(recent) > 512 || steps > 4096 {
			t.Errorf("%d traces with %d steps are kept", len(recent), steps)
		}
		if got := r.Slowest(2, all); len(got) != 2 || got[0].Name != "slow" || got[1].Took != time.Second {
			t.Errorf("the slowest: %v", got)
		}
		time.Sleep(2 * time.Hour)
		request("pod", "", 1, time.Millisecond)
		if got := r.Slowest(1, all); got[0].Name != "pod" {
			t.Errorf("the slowest of two hours ago is still there: %v", got[0])
		}
		request("many", "", 1000, 0)
		last := r.Recent(1, all)[0]
		if len(last.Steps)+last.Dropped != 1000 || len(last.Steps) > 128 {
			t.Errorf("%d steps, %d dropped", len(last.Steps), last.Dropped)
		}
		ctx, root := r.Begin(t.Context(), "long", trace.Remote{})
		for i := range 100 {
			trace.Set(ctx, fmt.Sprint(i), strings.Repeat("x", 1<<20))
		}
		r.End(root, "Unknown", strings.Repeat("x", 1<<20))
		last = r.Recent(1, all)[0]
		if size := len(fmt.Sprint(last)); size > 10000 {
			t.Errorf("a trace has %d bytes", size)
		}
	})
}

// TestFollow: a follower gets what ends, and one that does not receive holds nobody up.
func TestFollow(t *testing.T) {
	var r trace.Recorder
	end := func() {
		_, root := r.Begin(t.Context(), "x", trace.Remote{})
		r.End(root, "OK", "error")
	}
	c, stop := r.Follow()
	end()
	if x := <-c; x.Name != "x" {
		t.Errorf("followed %v", x)
	}
	for range 1000 {
		end()
	}
	stop()
	for len(c) > 0 {
		<-c
	}
	end()
	if len(c) != 0 {
		t.Error("followed after the stop")
	}
}

// TestClose: who follows is told of the end, after what has come before.
func TestClose(t *testing.T) {
	var r trace.Recorder
	early, stop := r.Follow()
	_, root := r.Begin(t.Context(), "x", trace.Remote{})
	r.End(root, "OK", "error")
	r.Close()
	r.Close()
	stop()
	if x := <-early; x == nil || x.Name != "x" {
		t.Errorf("followed %v", x)
	}
	late, stop := r.Follow()
	defer stop()
	for _, c := range []<-chan *trace.Trace{early, late} {
		if x, ok := <-c; ok {
			t.Errorf("after the end: %v", x)
		}
	}
	_, root = r.Begin(t.Context(), "x", trace.Remote{})
	r.End(root, "OK", "error")
}

// TestConcurrent: steps of one request begin and end in many goroutines, also after its end.
func TestConcurrent(t *testing.T) {
	var r trace.Recorder
	var running sync.WaitGroup
	for range 20 {
		running.Go(func() {
			ctx, root := r.Begin(context.Background(), "x", trace.Remote{})
			var steps sync.WaitGroup
			for range 10 {
				steps.Go(func() {
					ctx, step := trace.Start(ctx, "a")
					trace.Set(ctx, "k", "v")
					_ = trace.Do(ctx, "b", func() error { return nil })
					step.End(nil)
				})
			}
			r.End(root, "OK", "")
			_ = r.Recent(5, all)
			steps.Wait()
		})
	}
	running.Wait()
}

// TestRemote: the header of W3C Trace Context, and what is none.
func TestRemote(t *testing.T) {
	const id = "0af7651916cd43dd8448eb211c80319c"
	r := trace.ParseRemote("00-" + id + "-b7ad6b7169203331-01")
	if r.TraceID.String() != id || r.SpanID != 0xb7ad6b7169203331 {
		t.Errorf("%+v", r)
	}
	if later := trace.ParseRemote("01-" + id + "-b7ad6b7169203331-01-more"); later != r {
		t.Errorf("of a later version: %+v", later)
	}
	for _, bad := range []string{"", "00", "00-" + id + "-b7ad6b7169203331-01-more", "zz-" + id + "-b7ad6b7169203331-01", "00-" + id + "-b7ad6b7169203331-", "00-" + id + "-b7ad6b7169203331-0x",
		"00-" + strings.ToUpper(id) + "-b7ad6b7169203331-01", "00-" + id + "-B7AD6B7169203331-01", "ff-" + id + "-b7ad6b7169203331-01", "00-" + id + "-0000000000000000-01",
		"00-00000000000000000000000000000000-b7ad6b7169203331-01", "00-" + id[:30] + "zz-b7ad6b7169203331-01", "00-" + id + "0-b7ad6b7169203331-01"} {
		if r := trace.ParseRemote(bad); r != (trace.Remote{}) {
			t.Errorf("%q: %+v", bad, r)
		}
	}
	long := strings.Repeat("-", 1<<20)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	trace.ParseRemote(long)
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 1<<20 {
		t.Errorf("a header of 1 MiB costs %d bytes", n)
	}
	var rec trace.Recorder
	_, root := rec.Begin(t.Context(), "x", r)
	rec.End(root, "OK", "error")
	if got := rec.Recent(1, all)[0]; got.TraceID.String() != id || got.Parent != r.SpanID {
		t.Errorf("the trace of a client is not continued: %+v", got)
	}
}

// TestJSON: IDs are written as OpenTelemetry and the header of the client write them, and
// read back.
func TestJSON(t *testing.T) {
	const traceID, parent = "0af7651916cd43dd8448eb211c80319c", "00ad6b7169203331"
	var r trace.Recorder
	for range 100 {
		_, root := r.Begin(t.Context(), "x", trace.ParseRemote("00-"+traceID+"-"+parent+"-01"))
		r.End(root, "OK", "error")
	}
	for _, x := range r.Recent(100, all) {
		text, err := json.Marshal(x)
		if err != nil {
			t.Fatal(err)
		}
		var as struct{ TraceID, SpanID, ParentSpanID string }
		var back trace.Trace
		if err := errors.Join(json.Unmarshal(text, &as), json.Unmarshal(text, &back)); err != nil {
			t.Fatal(err)
		}
		if as.TraceID != traceID || as.ParentSpanID != parent || len(as.SpanID) != 16 || as.SpanID != x.SpanID.String() || back.SpanID != x.SpanID || back.Parent != x.Parent {
			t.Fatalf("%s", text)
		}
	}
	if text, _ := json.Marshal(trace.Trace{SpanID: 1}); strings.Contains(string(text), "parent") {
		t.Errorf("without a parent: %s", text)
	}
	for _, bad := range []string{`"1234567890"`, `"b7ad6b716920333x"`, `7`} {
		if err := json.Unmarshal([]byte(`{"spanId":`+bad+`}`), new(trace.Trace)); err == nil {
			t.Errorf("%s is the ID of a span", bad)
		}
	}
}

// BenchmarkNone is the cost of a step without a trace, BenchmarkStep that with one.
func BenchmarkNone(b *testing.B) {
	ctx := context.Background()
	for b.Loop() {
		_, s := trace.Start(ctx, "x")
		s.End(nil)
	}
}

func BenchmarkStep(b *testing.B) {
	var r trace.Recorder
	for b.Loop() {
		ctx, root := r.Begin(context.Background(), "x", trace.Remote{})
		for range 8 {
			_, s := trace.Start(ctx, "x")
			s.End(nil)
		}
		r.End(root, "OK", "")
	}
}
