package logging_test

import (
	"bufio"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/pkg/logging"
)

// TestStoppedReader: who logs goes on when nobody reads, and the reader gets what was
// logged, in order, and how much is missing.
func TestStoppedReader(t *testing.T) {
	for _, journal := range []bool{false, true} {
		t.Run(fmt.Sprint("journal ", journal), func(t *testing.T) { stoppedReader(t, journal) })
	}
}

func stoppedReader(t *testing.T, journal bool) {
	const workers, each = 4, 5000
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	if _, err := unix.FcntlInt(w.Fd(), unix.F_SETPIPE_SZ, 4096); err != nil {
		t.Fatal(err)
	}
	log := logging.New(w, logging.Options{Level: slog.LevelError, Journal: journal})
	var group sync.WaitGroup
	for worker := range workers {
		group.Go(func() {
			for n := range each {
				log.Error(strings.Repeat("x", 200), "worker", worker, "n", n)
			}
		})
	}
	group.Wait() // for ever, if one waits for the reader
	lines := bufio.NewScanner(r)
	next, read, lost := [workers]int{}, 0, 0
	for read+lost < workers*each && lines.Scan() {
		_, numbers, _ := strings.Cut(lines.Text(), " worker=")
		var worker, n int
		if _, err := fmt.Sscanf(numbers, "%d n=%d", &worker, &n); err == nil {
			if n != next[worker] {
				t.Fatalf("worker %d: line %d after %d", worker, n, next[worker]-1)
			}
			next[worker]++
			read++
			continue
		}
		_, number, _ := strings.Cut(lines.Text(), " lines=")
		if _, err := fmt.Sscan(number, &lost); err != nil || !strings.Contains(lines.Text(), "level=WARN") {
			t.Fatalf("line %q", lines.Text())
		}
	}
	if read+lost != workers*each || lost == 0 || read*200 < 1<<19 {
		t.Errorf("%d lines read and %d lost of %d", read, lost, workers*each)
	}
	// The reader reads again: all is as before.
	log.Error("after it")
	if !lines.Scan() || !strings.HasSuffix(lines.Text(), `msg="after it"`) {
		t.Errorf("line %q", lines.Text())
	}
}
