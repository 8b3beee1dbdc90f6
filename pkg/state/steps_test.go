package state

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// version is what one write made of a record. Each record has one writer, which
// counts its versions up.
type version struct {
	n       int
	deleted bool
}

// ledger knows what writers have tried and what was acknowledged.
type ledger struct {
	mu           sync.Mutex
	tried, acked map[string]version
	uncertain    map[string]version // errors that said that the change may take effect
}

func newLedger() *ledger {
	return &ledger{tried: map[string]version{}, acked: map[string]version{}, uncertain: map[string]version{}}
}

func (l *ledger) copy() *ledger {
	l.mu.Lock()
	defer l.mu.Unlock()
	return &ledger{tried: maps.Clone(l.tried), acked: maps.Clone(l.acked), uncertain: maps.Clone(l.uncertain)}
}

// write makes the next version of a record.
func (l *ledger) write(s *Store, id string, remove bool) error {
	l.mu.Lock()
	v := version{l.tried[id].n + 1, remove}
	l.tried[id] = v
	l.mu.Unlock()
	var err error
	if remove {
		err = s.DeletePod(id)
	} else {
		// Versions differ in length, so that one does not hide what is left of another.
		err = s.PutPod(Pod{ID: id, Handler: fmt.Sprint(v.n), Status: PodStatus{Reason: strings.Repeat("x", v.n*37%200)}})
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case err == nil:
		l.acked[id] = v
		delete(l.uncertain, id)
	case strings.Contains(err.Error(), "may take effect"):
		l.uncertain[id] = v
		l.tried[id] = version{v.n, l.acked[id].deleted}
	default:
		l.tried[id] = version{v.n, l.acked[id].deleted}
	}
	return err
}

// check compares a store with what was acknowledged. With inFlight, a record may
// also be what its writer was trying to make of it.
func (l *ledger) check(s *Store, inFlight bool) error {
	var errs []error
	for id, tried := range l.tried {
		acked, known := l.acked[id]
		want := []string{says(acked, known)}
		if inFlight {
			want = append(want, says(tried, true))
		}
		if v, ok := l.uncertain[id]; ok {
			want = append(want, says(v, true))
		}
		got := "none"
		if p, err := s.Pod(id); err == nil {
			got = p.Handler
		}
		ok := false
		for _, w := range want {
			ok = ok || got == w
		}
		if !ok {
			errs = append(errs, fmt.Errorf("record %s is version %s, want %s", id, got, strings.Join(want, " or ")))
		}
	}
	return errors.Join(errs...)
}

func says(v version, known bool) string {
	if !known || v.deleted {
		return "none"
	}
	return fmt.Sprint(v.n)
}

// snapshot is what a kill at one moment leaves, and what was acknowledged by then.
type snapshot struct {
	step   string
	files  map[string][]byte
	ledger *ledger
}

// world lets one step happen at a time, except that writes go on during a commit,
// and takes a snapshot after each.
type world struct {
	t      *testing.T
	file   string
	ledger *ledger
	store  *Store

	mu        sync.Mutex
	changed   *sync.Cond
	appended  int
	writers   int
	commits   bool // a commit has begun
	stalls    bool // the journal may be full
	snapshots []snapshot
}

func newWorld(t *testing.T, writers int) *world {
	w := &world{t: t, file: filepath.Join(t.TempDir(), "state.db"), ledger: newLedger(), writers: writers}
	w.changed = sync.NewCond(&w.mu)
	return w
}

func (w *world) hook(step string, do func() error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch step {
	case stepAppend, stepTrim, stepClear, stepRename:
		if w.store.disk.mu.TryLock() {
			w.t.Errorf("the step %q does not exclude writes", step)
			w.store.disk.mu.Unlock()
		}
	}
	var err error
	if step == stepCommit {
		w.commits = true
		w.changed.Broadcast()
		w.waitForAppends(3)
		w.take("before " + step)
		w.mu.Unlock()
		err = do()
		w.mu.Lock()
	} else {
		err = do()
	}
	if step == stepAppend {
		w.appended++
		w.changed.Broadcast()
	}
	w.take(step)
	if step == stepCommit || step == stepTail {
		w.waitForAppends(2)
	}
	return err
}

// waitForAppends lets writes happen in between, while there are any: until all
// writers have ended or wait for a full journal.
func (w *world) waitForAppends(n int) {
	late := false
	timer := time.AfterFunc(10*time.Millisecond, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		late = w.stalls
		w.changed.Broadcast()
	})
	defer timer.Stop()
	for target := w.appended + n; w.appended < target && w.writers > 0 && !late; {
		w.changed.Wait()
	}
}

// awaitCommit waits until a commit has begun: its thread may not run for as long as all
// writes take.
func (w *world) awaitCommit() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for !w.commits {
		w.changed.Wait()
	}
}

func (w *world) take(step string) {
	w.snapshots = append(w.snapshots, snapshot{step, readFiles(w.t, w.file), w.ledger.copy()})
}

func (w *world) writerDone() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.writers--
	w.changed.Broadcast()
}

// TestAKillAtEveryStep takes the files after every step of write, commit, cut and
// close, while several writers work. Opened by the next process they hold what was
// acknowledged by then; what was deleted stays deleted.
func TestAKillAtEveryStep(t *testing.T) {
	const writers, writes = 4, 40
	for _, limit := range []int64{defaults.journalLimit, 1500} { // rarely and often full
		t.Run(fmt.Sprintf("journal limit %d", limit), func(t *testing.T) {
			w := newWorld(t, writers)
			w.stalls = limit < defaults.journalLimit
			opts := options{commitDelay: time.Microsecond, retryDelay: time.Millisecond, journalLimit: limit, fullTimeout: time.Minute, noSync: true, hook: w.hook}
			s := openWith(t, w.file, opts)
			w.store = s
			var wg sync.WaitGroup
			for g := range writers {
				wg.Go(func() {
					defer w.writerDone()
					for i := range writes {
						if i == writes/4 {
							w.awaitCommit()
						}
						if err := w.ledger.write(s, fmt.Sprintf("p%d-%d", g, i%3), rand.IntN(4) == 0); err != nil {
							t.Error(err)
						}
					}
				})
			}
			wg.Wait()
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			w.check()
		})
	}
}

// check opens each snapshot, twice: recovery must not turn anything back either.
func (w *world) check() {
	steps := map[string]int{}
	for i, snap := range w.snapshots {
		steps[snap.step]++
		file := writeFiles(w.t, snap.files)
		for range 2 {
			s := openWith(w.t, file, byHand())
			if err := snap.ledger.check(s, true); err != nil {
				w.t.Errorf("killed at step %d, %q: %v", i, snap.step, err)
			}
			if err := s.Close(); err != nil {
				w.t.Error(err)
			}
		}
		if journal := readFiles(w.t, file)[".journal"]; len(journal) != 0 {
			w.t.Errorf("after Close the journal has %d bytes", len(journal))
		}
	}
	w.t.Logf("%d snapshots: %v", len(w.snapshots), steps)
	for _, step := range []string{stepAppend, "before " + stepCommit, stepCommit, stepTail, stepRename, stepClear, stepCloseJournal, stepCloseDB} {
		if steps[step] == 0 && !w.stalls {
			w.t.Errorf("the step %q did not happen", step)
		}
	}
}

// TestTheJournalIsBoundedWhileWritesGoOn commits in rounds, and writes go on during
// each commit: the journal then holds those and no others.
func TestTheJournalIsBoundedWhileWritesGoOn(t *testing.T) {
	const rounds, during = 50, 100
	file := filepath.Join(t.TempDir(), "state.db")
	opts := byHand()
	commits := 0
	var s *Store
	record := Pod{Handler: strings.Repeat("x", 3000)}
	put := func(n int) {
		for i := range n {
			record.ID = fmt.Sprintf("p%d", i)
			if err := s.PutPod(record); err != nil {
				t.Error(err)
			}
		}
	}
	opts.hook = func(step string, do func() error) error {
		if step == stepCommit && commits < rounds {
			commits++
			put(during)
		}
		return do()
	}
	s = openWith(t, file, opts)
	put(during)
	s.disk.mu.Lock()
	one := s.disk.journal.size
	s.disk.mu.Unlock()
	for range rounds {
		if err := round(s); err != nil {
			t.Fatal(err)
		}
		s.disk.mu.Lock()
		size := s.disk.journal.size
		s.disk.mu.Unlock()
		if size > one+during*8 { // the numbers of entries get longer
			t.Fatalf("after %d commits the journal has %d bytes, the writes during the last one %d", commits, size, one)
		}
	}
}
