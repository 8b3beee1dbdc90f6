package oci

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// ticker is a container that writes a line every 10 ms, with the log in a directory
// of its own.
func ticker(t *testing.T, e *Executor, dir string) *box {
	t.Helper()
	s := createSpec(t, e, container{args: sh("i=0; while :; do i=$((i+1)); echo line $i; sleep 0.01; done")})
	s.LogPath = filepath.Join(dir, "0.log")
	c, err := createAs(context.Background(), e, s)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Delete(context.Background(), s.ID, c); err != nil {
			t.Error(err)
		}
	})
	return (&box{Executor: e, t: t, id: s.ID, ctr: c, log: s.LogPath}).start()
}

// logsTo waits until the container writes to an open log file again.
func (b *box) logsTo(log *os.File) {
	b.t.Helper()
	size := func() int64 {
		fi, err := log.Stat()
		if err != nil {
			b.t.Fatal(err)
		}
		return fi.Size()
	}
	before := size()
	eventually(b.t, "the container goes on logging to "+log.Name(), func() bool { return size() > before })
}

func open(t *testing.T, path string) *os.File {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

func check(t testing.TB, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// Where a new log cannot be made, the container runs on and logs to the old file,
// nothing is made, and a later call works.
func TestReopenLogFails(t *testing.T) {
	for name, c := range map[string]struct {
		spoil, repair func(t *testing.T, dir string)
	}{
		"directory removed": {
			func(t *testing.T, dir string) { check(t, os.RemoveAll(dir)) },
			func(t *testing.T, dir string) { check(t, os.Mkdir(dir, 0o755)) },
		},
		"directory is a file": {
			func(t *testing.T, dir string) { check(t, os.RemoveAll(dir), os.WriteFile(dir, nil, 0o600)) },
			func(t *testing.T, dir string) { check(t, os.Remove(dir), os.Mkdir(dir, 0o755)) },
		},
		"directory is not writable": {
			func(t *testing.T, dir string) { mount(t, dir, unix.MS_RDONLY, "") },
			func(t *testing.T, dir string) {
				check(t, unix.Unmount(dir, unix.MNT_DETACH), os.RemoveAll(filepath.Join(dir, "0.log")))
			},
		},
		"no inodes": {
			func(t *testing.T, dir string) {
				mount(t, dir, 0, "nr_inodes=2")
				check(t, os.WriteFile(dir+"/full", nil, 0o600))
			},
			func(t *testing.T, dir string) {
				check(t, unix.Unmount(dir, unix.MNT_DETACH), os.RemoveAll(filepath.Join(dir, "0.log")))
			},
		},
		"path is a directory": {
			func(t *testing.T, dir string) {
				check(t, os.Rename(dir+"/0.log", dir+"/1"), os.Mkdir(dir+"/0.log", 0o755))
			},
			func(t *testing.T, dir string) { check(t, os.Remove(dir+"/0.log")) },
		},
		"path is a symbolic link": {
			func(t *testing.T, dir string) {
				check(t, os.Rename(dir+"/0.log", dir+"/1"), os.WriteFile(dir+"/victim", []byte("precious"), 0o600), os.Symlink("victim", dir+"/0.log"))
			},
			func(t *testing.T, dir string) { check(t, os.Remove(dir+"/0.log")) },
		},
		"temporary name is a directory": {
			func(t *testing.T, dir string) {
				check(t, os.Rename(dir+"/0.log", dir+"/1"), os.Mkdir(dir+"/0.log.tmp", 0o755))
			},
			func(t *testing.T, dir string) { check(t, os.Remove(dir+"/0.log.tmp")) },
		},
	} {
		t.Run(name, func(t *testing.T) {
			e := executor(t)
			dir := filepath.Join(t.TempDir(), "logs")
			check(t, os.Mkdir(dir, 0o755))
			b := ticker(t, e, dir)
			old := open(t, b.log)
			b.logsTo(old)
			c.spoil(t, dir)
			before := names(dir)
			if err := e.ReopenLog(context.Background(), b.id, b.ctr); err == nil || errors.Is(err, ErrNotRunning) {
				t.Errorf("reopen: %v", err)
			}
			if after := names(dir); after != before {
				t.Errorf("the directory holds %q, before %q", after, before)
			}
			b.logsTo(old)
			if victim, err := os.ReadFile(dir + "/victim"); err == nil && string(victim) != "precious" {
				t.Errorf("the link's target holds %q", victim)
			}
			c.repair(t, dir)
			if err := e.ReopenLog(context.Background(), b.id, b.ctr); err != nil {
				t.Errorf("reopen after the repair: %v", err)
			}
			b.logsTo(open(t, b.log))
		})
	}
}

// mount puts a tmpfs on a directory until the test ends, or repairs it.
func mount(t *testing.T, dir string, flags uintptr, options string) {
	t.Helper()
	check(t, unix.Mount("tmpfs", dir, "tmpfs", flags, options))
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
}

// names lists a directory.
func names(dir string) string {
	entries, err := os.ReadDir(dir)
	return fmt.Sprint(entries, err)
}

// A temporary file that somebody has put there is not written to.
func TestReopenLogPlantedFile(t *testing.T) { eachMonitor(t, testReopenLogPlantedFile) }

func testReopenLogPlantedFile(t *testing.T, e *Executor) {
	dir := t.TempDir()
	b := ticker(t, e, dir)
	victim := filepath.Join(dir, "victim")
	check(t, os.WriteFile(victim, []byte("precious"), 0o600))
	for _, plant := range []func(path string) error{
		func(path string) error { return os.Symlink(victim, path) },
		func(path string) error { return os.Link(victim, path) },
		func(path string) error { return syscall.Mkfifo(path, 0o600) },
	} {
		check(t, os.Rename(b.log, b.log+".old"), plant(b.log+".tmp"))
		if err := e.ReopenLog(context.Background(), b.id, b.ctr); err != nil {
			t.Error(err)
		}
		b.logsTo(open(t, b.log))
		if text, err := os.ReadFile(victim); err != nil || string(text) != "precious" {
			t.Errorf("the planted file holds %q, %v", text, err)
		}
	}
}

// The directory may vanish at any moment, also between our look and conmon's.
func TestReopenLogWhileTheDirectoryGoes(t *testing.T) {
	e := executor(t)
	dir := filepath.Join(t.TempDir(), "logs")
	check(t, os.Mkdir(dir, 0o755))
	b := ticker(t, e, dir)
	check(t, os.Rename(b.log, b.log+".old"))
	// conmon does not come to it before the directory has gone.
	check(t, b.ctr.Conmon.Signal(syscall.SIGSTOP))
	done := make(chan error, 1)
	go func() { done <- e.ReopenLog(context.Background(), b.id, b.ctr) }()
	eventually(t, "the new file is there", func() bool { _, err := os.Stat(b.log); return err == nil })
	time.Sleep(50 * time.Millisecond)
	check(t, os.Rename(dir, dir+".moved"), os.RemoveAll(dir+".moved"))
	check(t, b.ctr.Conmon.Signal(syscall.SIGCONT))
	if err := <-done; err != nil {
		t.Logf("reopen: %v", err) // it may notice or not
	}
	if !b.ctr.Conmon.Alive() || !b.ctr.Init.Alive() {
		t.Fatal("the container has ended")
	}
	// And in a loop.
	stop := make(chan struct{})
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		for {
			select {
			case <-stop:
				return
			default:
			}
			_ = os.Mkdir(dir, 0o755)
			time.Sleep(5 * time.Millisecond)
			_ = os.RemoveAll(dir)
		}
	}()
	worked := 0
	for range 100 {
		if e.ReopenLog(context.Background(), b.id, b.ctr) == nil {
			worked++
		}
	}
	close(stop)
	<-gone
	t.Logf("%d of 100 went well", worked)
	if !b.ctr.Conmon.Alive() || !b.ctr.Init.Alive() {
		t.Fatal("the container has ended")
	}
	check(t, os.MkdirAll(dir, 0o755), e.ReopenLog(context.Background(), b.id, b.ctr))
	b.logsTo(open(t, b.log))
}

// A conmon that does not read keeps what it has, also when it reads again.
func TestReopenLogOfAStuckConmon(t *testing.T) {
	e := executor(t)
	b := ticker(t, e, t.TempDir())
	old := open(t, b.log)
	check(t, os.Rename(b.log, b.log+".old"), b.ctr.Conmon.Signal(syscall.SIGSTOP))
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	if err := e.ReopenLog(ctx, b.id, b.ctr); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("reopen: %v", err)
	}
	if _, err := os.Stat(b.log); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a log is left at the path: %v", err)
	}
	check(t, b.ctr.Conmon.Signal(syscall.SIGCONT))
	b.logsTo(old)
	check(t, e.ReopenLog(context.Background(), b.id, b.ctr))
	b.logsTo(open(t, b.log))
}

// Containers of earlier servers have a conmon that opens the log's path itself.
func TestReopenLogOfAnEarlierServer(t *testing.T) {
	e := executor(t)
	dir := filepath.Join(t.TempDir(), "logs")
	check(t, os.Mkdir(dir, 0o755))
	conmon := filepath.Join(e.runDir, "oldconmon")
	const text = `#!/bin/sh
n=$#
while [ $n -gt 0 ]; do
	case $1 in
	k8s-file:*) set -- "$@" k8s-file:%s/0.log;;
	*) set -- "$@" "$1";;
	esac
	shift
	n=$((n-1))
done
exec %s "$@"
`
	check(t, os.WriteFile(conmon, fmt.Appendf(nil, text, dir, e.conmon), 0o755))
	e.conmon = conmon
	b := ticker(t, e, dir)
	check(t, os.Remove(filepath.Join(b.ctr.Bundle, logLink)))
	old := open(t, b.log)
	for range 3 {
		check(t, os.Rename(b.log, b.log+".old"), e.ReopenLog(context.Background(), b.id, b.ctr))
		old = open(t, b.log)
		b.logsTo(old)
	}
	check(t, os.Rename(dir, dir+".moved"))
	if err := e.ReopenLog(context.Background(), b.id, b.ctr); err == nil {
		t.Error("reopen without a directory went well")
	}
	b.logsTo(old)
	check(t, os.Mkdir(dir, 0o755), os.Mkdir(b.log, 0o755))
	if err := e.ReopenLog(context.Background(), b.id, b.ctr); err == nil {
		t.Error("reopen with a directory at the path went well")
	}
	b.logsTo(old)
}

// No line is lost and none written twice over many rotations.
func TestReopenLogKeepsEveryLine(t *testing.T) { eachMonitor(t, testReopenLogKeepsEveryLine) }

func testReopenLogKeepsEveryLine(t *testing.T, e *Executor) {
	dir := t.TempDir()
	b := ticker(t, e, dir)
	for i := range 20 {
		check(t, os.Rename(b.log, fmt.Sprintf("%s.%02d", b.log, i)), e.ReopenLog(context.Background(), b.id, b.ctr))
		b.logsTo(open(t, b.log))
	}
	check(t, b.Signal(context.Background(), b.id, b.ctr, syscall.SIGKILL, false))
	b.wait()
	files, err := filepath.Glob(b.log + ".*")
	check(t, err)
	next := 1
	for _, file := range append(files, b.log) {
		text, err := os.ReadFile(file)
		check(t, err)
		for line := range strings.Lines(string(text)) {
			if !strings.HasSuffix(line, fmt.Sprintf(" stdout F line %d\n", next)) {
				t.Fatalf("%s has %q, want line %d", file, line, next)
			}
			next++
		}
	}
	if next < 20 {
		t.Errorf("%d lines only", next)
	}
}
