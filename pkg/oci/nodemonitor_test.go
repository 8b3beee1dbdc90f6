package oci

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/pkg/monitor/wire"
	"github.com/subpod/subpod/pkg/proc"
	"github.com/subpod/subpod/pkg/stdio"
)

// monitorProcess returns the process that is the node's monitor now.
func monitorProcess(t *testing.T, e *Executor) proc.ID {
	t.Helper()
	hello, err := nodeMonitor{e}.ask(context.Background(), wire.Request{Op: wire.OpHello})
	if err != nil {
		t.Fatal(err)
	}
	id, err := proc.Identify(hello.PID)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// checkNumbers checks that the files together have the lines 1 to last, each once.
func checkNumbers(t *testing.T, last int, files ...string) {
	t.Helper()
	next := 1
	for _, file := range files {
		b, err := os.ReadFile(file)
		check(t, err)
		for line := range bytes.Lines(b) {
			fields := strings.SplitN(strings.TrimSuffix(string(line), "\n"), " ", 4)
			if len(fields) != 4 || fields[1] != "stdout" || fields[2] != "F" || fields[3] != fmt.Sprint(next) {
				t.Fatalf("%s has %.100q, want line %d", file, line, next)
			}
			next++
		}
	}
	if next-1 != last {
		t.Errorf("%d lines, want %d", next-1, last)
	}
}

// TestMonitorKilled: with the monitor killed again and again while a container writes, each
// line is in the log, once and in order, and the exit code is known.
func TestMonitorKilled(t *testing.T) {
	e := executorWith(t, MonitorNode)
	const least = 100_000
	b := create(t, e, container{args: sh(fmt.Sprintf("i=0; while [ $i -lt %d ] || ! [ -e /enough ]; do i=$((i+1)); echo $i; done; echo $i >/lines; exit 7", least))}).start()
	enough := filepath.Join(b.ctr.Rootfs, "enough")
	kills := 0
	for ; b.ctr.Init.Alive(); kills++ {
		id := monitorProcess(t, e)
		time.Sleep(time.Duration(kills%7) * 3 * time.Millisecond)
		_ = id.Signal(syscall.SIGKILL)
		if kills == 7 {
			check(t, os.WriteFile(enough, nil, 0o644))
		}
	}
	if x := b.wait(); x.Code != 7 || x.Unknown {
		t.Errorf("exit %+v, want 7", x)
	}
	text, err := os.ReadFile(filepath.Join(b.ctr.Rootfs, "lines"))
	check(t, err)
	lines, err := strconv.Atoi(strings.TrimSpace(string(text)))
	check(t, err)
	checkNumbers(t, lines, b.log)
	t.Logf("killed %d times, %d lines", kills, lines)
}

// TestMonitorKilledAtTheEnd: what a container has written and how it has ended is not lost
// when no monitor ran at its end.
func TestMonitorKilledAtTheEnd(t *testing.T) {
	e := executorWith(t, MonitorNode)
	b := create(t, e, container{args: sh("sleep 0.3; echo last; printf unfinished; exit 9")}).start()
	monitor := monitorProcess(t, e)
	check(t, monitor.Signal(syscall.SIGSTOP))
	eventually(t, "init ends", func() bool { return !b.ctr.Init.Alive() })
	check(t, monitor.Signal(syscall.SIGKILL))
	if x := b.wait(); x.Code != 9 || x.Unknown || x.At.IsZero() {
		t.Errorf("exit %+v, want 9", x)
	}
	if got := fmt.Sprintf("%q", b.logLines()); got != `["stdout F last" "stdout P unfinished"]` {
		t.Errorf("the log has %s", got)
	}
}

// TestMonitorLongLine: a line of 100 MiB is in the log in pieces, and takes the monitor no
// memory.
func TestMonitorLongLine(t *testing.T) {
	e := executorWith(t, MonitorNode)
	const size = 100 << 20
	b := create(t, e, container{args: sh(fmt.Sprintf("head -c %d /dev/zero; echo; echo end", size))}).start()
	if x := b.wait(); x.Code != 0 {
		t.Fatalf("exit %+v", x)
	}
	text, err := os.ReadFile(b.log)
	check(t, err)
	total, pieces := 0, 0
	for line := range bytes.Lines(text) {
		fields := bytes.SplitN(bytes.TrimSuffix(line, []byte("\n")), []byte(" "), 4)
		n := len(fields[3])
		if bytes.Equal(fields[3], []byte("end")) {
			break
		}
		if full := string(fields[2]) == "F"; full != (total+n == size) || !full && n != 16384 {
			t.Fatalf("piece %d has the tag %s and %d bytes, %d before", pieces, fields[2], n, total)
		}
		total, pieces = total+n, pieces+1
	}
	if total != size || !bytes.HasSuffix(text, []byte(" stdout F end\n")) {
		t.Errorf("%d bytes in %d pieces, want %d", total, pieces, size)
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", monitorProcess(t, e).PID))
	check(t, err)
	var rss int
	if _, after, ok := strings.Cut(string(status), "VmRSS:"); ok {
		_, err = fmt.Sscan(after, &rss)
		check(t, err)
	}
	if t.Logf("the monitor has %d KiB", rss); rss > 64<<10 {
		t.Errorf("the monitor has %d KiB after it", rss)
	}
}

// TestMonitorRotation: no line is lost and none written twice when the log is rotated while
// the container writes as fast as it can.
func TestMonitorRotation(t *testing.T) {
	e := executorWith(t, MonitorNode)
	const lines = 50_000
	b := create(t, e, container{args: sh(fmt.Sprintf("i=0; while [ $i -lt %d ]; do i=$((i+1)); echo $i; done", lines))}).start()
	var files []string
	for b.ctr.Init.Alive() {
		old := fmt.Sprintf("%s.%d", b.log, len(files))
		check(t, os.Rename(b.log, old))
		files = append(files, old)
		if err := e.ReopenLog(context.Background(), b.id, b.ctr); errors.Is(err, ErrNotRunning) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
	}
	b.wait()
	if _, err := os.Stat(b.log); err == nil {
		files = append(files, b.log)
	}
	checkNumbers(t, lines, files...)
	t.Logf("rotated %d times", len(files))
}

// TestMonitorSlowClient: a client that does not read slows neither the container nor another
// client, and is told so; one that is paced loses nothing.
func TestMonitorSlowClient(t *testing.T) {
	e := executorWith(t, MonitorNode)
	const size = 2 << 20
	// Slow enough for a client on a machine that does much else.
	write := container{args: sh(fmt.Sprintf("i=0; while [ $i -lt 64 ]; do i=$((i+1)); yes | head -c %d; sleep 0.05; done; sleep 1000", size/64))}
	b := create(t, e, write)
	r, w := io.Pipe() // nobody reads
	slow := make(chan error, 1)
	attached := make(chan struct{}, 2)
	ready := func() { attached <- struct{}{} }
	go func() {
		slow <- e.Attach(context.Background(), b.id, b.ctr, stdio.Streams{Stdout: w, Attached: ready})
	}()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var got syncBuffer
	fast := make(chan error, 1)
	go func() { fast <- e.Attach(ctx, b.id, b.ctr, stdio.Streams{Stdout: &got, Attached: ready}) }()
	<-attached
	<-attached
	b.start()
	eventually(t, "the other client has it all", func() bool { return len(got.String()) == size })
	go func() { _, _ = io.Copy(io.Discard, r) }()
	if err := <-slow; err == nil || !strings.Contains(err.Error(), "too slowly") {
		t.Errorf("the slow client: %v", err)
	}
	cancel()
	<-fast

	b = create(t, e, write)
	r, w = io.Pipe()
	ctx, cancel = context.WithCancel(context.Background())
	defer cancel()
	paced := make(chan error, 1)
	go func() {
		paced <- e.Attach(ctx, b.id, b.ctr, stdio.Streams{Stdout: w, Attached: ready, Paced: true})
	}()
	<-attached
	b.start()
	time.Sleep(100 * time.Millisecond)
	if n, err := io.CopyN(io.Discard, r, size); err != nil {
		t.Errorf("the paced client got %d bytes: %v", n, err)
	}
	cancel()
	r.Close()
	<-paced
}

// TestMonitorUpgrade: another program takes over without a loss.
func TestMonitorUpgrade(t *testing.T) {
	e := executorWith(t, MonitorNode)
	const lines = 30_000
	b := create(t, e, container{args: sh(fmt.Sprintf("i=0; while [ $i -lt %d ]; do i=$((i+1)); echo $i; done; exit 3", lines))}).start()
	before := monitorProcess(t, e)
	check(t, installMonitor(filepath.Join(os.Getenv(monitorDir), "program")))
	nodeMonitor{e}.choose(context.Background(), filepath.Join(os.Getenv(monitorDir), "program"))
	eventually(t, "the earlier one has ended", func() bool { return !before.Alive() })
	if after := monitorProcess(t, e); after == before {
		t.Error("the monitor is the one of before")
	}
	if x := b.wait(); x.Code != 3 {
		t.Errorf("exit %+v, want 3", x)
	}
	checkNumbers(t, lines, b.log)
}

// TestMonitorFullDisk: a full disk does not stop the container, the log keeps whole lines,
// and goes on when there is room.
func TestMonitorFullDisk(t *testing.T) {
	e := executorWith(t, MonitorNode)
	dir := filepath.Join(t.TempDir(), "logs")
	check(t, os.Mkdir(dir, 0o755))
	mount(t, dir, 0, "size=256k")
	s := createSpec(t, e, container{args: sh("i=0; while :; do i=$((i+1)); echo line $i; done")})
	s.LogPath = filepath.Join(dir, "0.log")
	c, err := createAs(context.Background(), e, s)
	check(t, err)
	t.Cleanup(func() { check(t, e.Delete(context.Background(), s.ID, c)) })
	b := (&box{Executor: e, t: t, id: s.ID, ctr: c, log: s.LogPath}).start()
	eventually(t, "the disk is full", func() bool {
		var st unix.Statfs_t
		check(t, unix.Statfs(dir, &st))
		return st.Bavail == 0
	})
	// It tries again and again, and takes back what does not fit.
	eventually(t, "the log ends with a whole line", func() bool {
		data, err := os.ReadFile(b.log)
		check(t, err)
		return bytes.HasSuffix(data, []byte("\n"))
	})
	data, err := os.ReadFile(b.log)
	check(t, err)
	for line := range strings.Lines(string(data[:bytes.LastIndexByte(data, '\n')+1])) {
		if !strings.Contains(line, " stdout F line ") {
			t.Errorf("a line is %q", line)
		}
	}
	check(t, os.Rename(b.log, b.log+".1"), e.ReopenLog(context.Background(), b.id, b.ctr), os.Truncate(b.log+".1", 0))
	eventually(t, "it goes on", func() bool {
		data, err := os.ReadFile(b.log)
		first, _, whole := strings.Cut(string(data), "\n")
		if whole && !strings.Contains(first, " stdout F line ") {
			t.Fatalf("the first line is %q", first)
		}
		return err == nil && whole
	})
}

// TestMonitorManyContainers: many containers at once, some of which write without end, and a
// monitor that is killed; each log and exit code is its own.
func TestMonitorManyContainers(t *testing.T) {
	n := 300
	if testing.Short() {
		n = 60
	}
	e := executorWith(t, MonitorNode)
	hostile := create(t, e, container{noLog: true, args: []string{"/bin/yes"}}).start()
	var mu sync.Mutex
	var boxes []*box
	var g errgroup.Group
	g.SetLimit(4)
	for i := range n {
		g.Go(func() error {
			b, err := tryCreate(t, e, container{args: sh(fmt.Sprintf("echo number %d; echo other >&2; exit %d", i, i%100))})
			if err != nil {
				return err
			}
			t.Cleanup(func() { check(t, e.Delete(context.Background(), b.id, b.ctr)) })
			mu.Lock()
			boxes = append(boxes, b)
			mu.Unlock()
			b.spec.Annotations = map[string]string{"n": fmt.Sprint(i)}
			return nil
		})
	}
	check(t, g.Wait())
	check(t, monitorProcess(t, e).Signal(syscall.SIGKILL))
	for _, b := range boxes {
		b.start()
	}
	for _, b := range boxes {
		var i int32
		_, err := fmt.Sscan(b.spec.Annotations["n"], &i)
		check(t, err)
		if x := b.wait(); x.Code != i%100 {
			t.Errorf("container %d: exit %+v", i, x)
		}
		lines := b.logLines()
		if len(lines) != 2 || !strings.Contains(strings.Join(lines, ";"), fmt.Sprintf("stdout F number %d", i)) {
			t.Errorf("container %d: log %q", i, lines)
		}
	}
	check(t, hostile.Signal(context.Background(), hostile.id, hostile.ctr, syscall.SIGKILL, false))
	hostile.wait()
}

// TestMonitorConfined: no thread of the monitor has a capability, each is under a seccomp
// filter, and nothing that it executed could have more.
func TestMonitorConfined(t *testing.T) {
	e := executorWith(t, MonitorNode)
	create(t, e, container{}).start()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", monitorProcess(t, e).PID))
	check(t, err)
	if len(tasks) == 0 {
		t.Fatal("the monitor has no threads")
	}
	for _, task := range tasks {
		status, err := os.ReadFile(task)
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
			continue // the thread has ended
		}
		check(t, err)
		for _, want := range []string{"\nCapEff:\t0000000000000000\n", "\nCapPrm:\t0000000000000000\n", "\nNoNewPrivs:\t1\n", "\nSeccomp:\t2\n"} {
			if !bytes.Contains(status, []byte(want)) {
				t.Errorf("%s has no %q", task, want)
			}
		}
	}
}

// TestMonitorFullStdin: a client that goes while the container does not read its stdin leaves
// nothing behind: others can attach.
func TestMonitorFullStdin(t *testing.T) {
	e := executorWith(t, MonitorNode)
	b := create(t, e, container{stdin: true, args: sh("sleep 1000")}).start()
	attach := func(s stdio.Streams) error {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if s.Stdin == nil {
			s.Attached = cancel
		} else {
			s.Stdin = io.MultiReader(s.Stdin, readerFunc(func([]byte) (int, error) {
				cancel() // what was before is sent
				return 0, io.EOF
			}))
		}
		if err := e.Attach(ctx, b.id, b.ctr, s); !errors.Is(err, context.Canceled) {
			return err
		}
		return nil
	}
	for range 70 { // more than a container may have
		_ = attach(stdio.Streams{Stdin: bytes.NewReader(make([]byte, 80<<10)), Stdout: io.Discard})
	}
	var err error
	defer func() {
		if t.Failed() {
			t.Log(err)
		}
	}()
	eventually(t, "another client can attach", func() bool {
		err = attach(stdio.Streams{Stdout: io.Discard})
		return err == nil
	})
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }
