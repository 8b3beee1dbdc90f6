package state

import (
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
)

// faults makes steps fail as on a full disk.
type faults struct {
	mu     sync.Mutex
	active bool
	at     map[string]int // fails from the n-th time of a step on; 0: never
	once   bool           // only that time
	after  bool           // fails after the step was done
	count  map[string]int
	during int // so many commits have a write during them
}

func (f *faults) hook(step string, do func() error) error {
	f.mu.Lock()
	f.count[step]++
	n, at := f.count[step], f.at[step]
	fail := f.active && at > 0 && (n == at || n > at && !f.once)
	f.mu.Unlock()
	if !fail {
		return do()
	}
	if f.after {
		_ = do()
	}
	return &os.PathError{Op: step, Path: "injected", Err: syscall.ENOSPC}
}

func (f *faults) set(active bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.active = active
}

var writeSteps = []string{stepAppend, stepTrim, stepCommit, stepClear, stepTail, stepRename, stepCloseJournal, stepCloseDB}

// TestAFullDiskAtEveryStep makes each step fail, once or from then on, before or
// after it has done its work, with and without writes during the commits. What was
// acknowledged is there after a kill and after a Close, opened with and without the
// fault; with space, writes work again.
func TestAFullDiskAtEveryStep(t *testing.T) {
	together := [][]string{{stepAppend, stepTrim}, {stepAppend, stepCommit, stepTail}, {stepCommit, stepClear}}
	for _, steps := range append(eachAlone(writeSteps), together...) {
		for _, at := range []int{1, 2, 5} {
			for n := range 8 {
				f := &faults{at: map[string]int{}, once: n&1 != 0, after: n&2 != 0, count: map[string]int{}}
				if n&4 != 0 {
					f.during = at
				}
				if !f.after && strings.HasPrefix(steps[0], "close") {
					continue // the kernel closes a file in any case
				}
				for _, step := range steps {
					f.at[step] = at
				}
				if len(steps) > 1 && steps[1] == stepTrim {
					f.at[stepTrim] = 1
				}
				name := fmt.Sprintf("%s, time %d, once %v, done %v, %d writes during commits", strings.Join(steps, "+"), at, f.once, f.after, f.during)
				t.Run(name, func(t *testing.T) { fullDisk(t, f) })
			}
		}
	}
}

func eachAlone(steps []string) (out [][]string) {
	for _, step := range steps {
		out = append(out, []string{step})
	}
	return out
}

func fullDisk(t *testing.T, f *faults) {
	file := filepath.Join(t.TempDir(), "state.db")
	opts := byHand()
	opts.retryDelay = time.Hour
	l := newLedger()
	var s *Store
	commits := 0
	opts.hook = func(step string, do func() error) error {
		if step == stepCommit && commits < f.during {
			commits++
			_ = l.write(s, "during", commits%5 == 4)
		}
		return f.hook(step, do)
	}
	first, err := open(file, discard, opts)
	if err != nil {
		t.Fatal(err)
	}
	s = first
	f.set(true)
	for i := range 13 { // the last one is in the journal alone
		_ = l.write(s, fmt.Sprint("p", i%3), i%4 == 3)
		if i%2 == 1 {
			_ = round(s)
		}
	}
	recheck := func(what, file string, opts options) {
		t.Helper()
		again, err := open(file, discard, opts)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		defer again.Close()
		if err := l.check(again, false); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := l.check(s, false); err != nil {
		t.Error("in memory:", err)
	}
	killed := readFiles(t, file)
	recheck("killed, then space", writeFiles(t, killed), byHand())
	full := byHand()
	full.retryDelay = time.Hour
	full.hook = f.hook
	recheck("killed, still full", writeFiles(t, killed), full)

	f.set(false)
	if err := l.write(s, "space", false); err != nil {
		t.Error("with space again:", err)
	}
	if err := round(s); err != nil {
		t.Error("with space again:", err)
	}
	f.set(true)
	_ = l.write(s, "p0", false)
	_ = s.Close()
	f.set(false)
	recheck("closed", file, byHand())
}

// TestOpenOnAFullDisk: what fails while the store is opened is an error, and the
// next Open finds all records.
func TestOpenOnAFullDisk(t *testing.T) {
	for _, step := range []string{stepOpen, stepReplay} {
		file := filepath.Join(t.TempDir(), "state.db")
		s := openWith(t, file, byHand())
		if err := s.PutPod(samplePod()); err != nil {
			t.Fatal(err)
		}
		file = copyFiles(t, file)
		f := &faults{active: true, at: map[string]int{step: 1}, count: map[string]int{}}
		opts := byHand()
		opts.hook = f.hook
		if _, err := open(file, discard, opts); !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("%s: %v, want ENOSPC", step, err)
		}
		if _, err := openWith(t, file, byHand()).Pod("aabb"); err != nil {
			t.Errorf("%s: %v", step, err)
		}
	}
}

// TestAFullJournalRefusesWrites: while the database cannot be written, writes go on
// until the journal is full, and are refused then. With space they work at once.
func TestAFullJournalRefusesWrites(t *testing.T) {
	file := filepath.Join(t.TempDir(), "state.db")
	f := &faults{active: true, at: map[string]int{stepCommit: 1}, count: map[string]int{}}
	opts := byHand()
	opts.retryDelay, opts.journalLimit, opts.fullTimeout, opts.hook = time.Hour, 4000, time.Hour, f.hook
	s := openWith(t, file, opts)
	l := newLedger()
	var err error
	for i := 0; err == nil && i < 1000; i++ {
		err = l.write(s, fmt.Sprint("p", i), false)
	}
	if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "is full") {
		t.Fatalf("the write after %d: %v, want a full journal and ENOSPC", len(l.acked), err)
	}
	if err := l.write(s, "p0", true); err == nil {
		t.Error("a deletion with a full journal succeeded")
	}
	if err := l.check(openWith(t, copyFiles(t, file), byHand()), false); err != nil {
		t.Error("after a kill:", err)
	}
	if err := l.check(s, false); err != nil {
		t.Error("in memory:", err)
	}
	f.set(false)
	if err := l.write(s, "p0", true); err != nil {
		t.Error("with space again:", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
	if err := l.check(openWith(t, file, byHand()), false); err != nil {
		t.Error("after Close:", err)
	}
}

// TestAFullJournalHasOneDeadline: writes that wait for a database that hangs are
// refused, and none of those that queue waits for its own time.
func TestAFullJournalHasOneDeadline(t *testing.T) {
	hang := make(chan struct{})
	opts := byHand()
	opts.journalLimit, opts.fullTimeout = 400, 100*time.Millisecond
	opts.hook = func(step string, do func() error) error {
		if step == stepCommit {
			<-hang
		}
		return do()
	}
	file := filepath.Join(t.TempDir(), "state.db")
	s := openWith(t, file, opts)
	var err error
	writes := 0
	for ; err == nil && writes < 1000; writes++ {
		err = s.PutPod(samplePod())
	}
	if err == nil || !strings.Contains(err.Error(), "is full") {
		t.Fatalf("write %d: %v, want a full journal", writes, err)
	}
	s.disk.mu.Lock()
	s.disk.opts.fullTimeout = time.Hour // would be waited for
	s.disk.full = s.disk.full.Add(-time.Hour)
	s.disk.mu.Unlock()
	if err := s.PutPod(samplePod()); err == nil {
		t.Error("a write with a full journal succeeded")
	}
	close(hang)
	if err := round(s); err != nil {
		t.Error(err)
	}
	if err := s.PutPod(samplePod()); err != nil {
		t.Error("after the database went on:", err)
	}
}

// TestFilesOfEarlierVersions: the format of the journal is that of version 1, byte
// for byte, so that an earlier and a later subpod may follow each other.
func TestFilesOfEarlierVersions(t *testing.T) {
	text, err := encodeEntry(entry{Seq: 7, Bucket: podBucket, Key: "a", Value: []byte(`{"id":"a"}`)})
	if err != nil {
		t.Fatal(err)
	}
	const golden = "00000029872c4ac0" + // length, checksum
		"7b226e223a372c2262223a22706f6473222c226b223a2261222c2276223a7b226964223a2261227d7d" // {"n":7,"b":"pods","k":"a","v":{"id":"a"}}
	if got := hex.EncodeToString(text); got != golden {
		t.Errorf("an entry is %s, want %s", got, golden)
	}
	for _, e := range []entry{{Seq: 1, Bucket: podBucket, Key: "a\"\n<é>", Value: []byte(`{"x":"\u003c"}`)}, {Seq: 1<<64 - 1, Bucket: containerBucket, Key: "c"}} {
		want, err1 := json.Marshal(e)
		text, err2 := encodeEntry(e)
		if err := errors.Join(err1, err2); err != nil || string(text[headerSize:]) != string(want) {
			t.Errorf("an entry is %s, want %s: %v", text[headerSize:], want, err)
		}
	}
	file := filepath.Join(t.TempDir(), "state.db")
	db, err := bolt.Open(file, 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bolt.Tx) error {
		meta, err1 := tx.CreateBucket([]byte("meta"))
		pods, err2 := tx.CreateBucket([]byte("pods"))
		_, err3 := tx.CreateBucket([]byte("containers"))
		if err := errors.Join(err1, err2, err3); err != nil {
			return err
		}
		return errors.Join(
			meta.Put([]byte("version"), binary.BigEndian.AppendUint64(nil, 1)),
			meta.Put([]byte("journal"), binary.BigEndian.AppendUint64(nil, 6)),
			pods.Put([]byte("a"), []byte(`{"id":"a","handler":"old"}`)),
			pods.Put([]byte("b"), []byte(`{"id":"b","facts":{"node":"n1"}}`)))
	})
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	var journal []byte
	for _, e := range []entry{
		{Seq: 6, Bucket: podBucket, Key: "a", Value: []byte(`{"id":"a","handler":"older than the database"}`)},
		{Seq: 7, Bucket: podBucket, Key: "a", Value: []byte(`{"id":"a","handler":"new"}`)},
		{Seq: 8, Bucket: containerBucket, Key: "c", Value: []byte(`{"id":"c","podId":"a"}`)},
		{Seq: 9, Bucket: podBucket, Key: "x", Value: []byte(`{"id":"x"}`)},
		{Seq: 10, Bucket: podBucket, Key: "x"},
	} {
		text, err := encodeEntry(e)
		if err != nil {
			t.Fatal(err)
		}
		journal = append(journal, text...)
	}
	if err := os.WriteFile(file+".journal", append(journal, "torn"...), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		s := openWith(t, file, byHand())
		a, err1 := s.Pod("a")
		b, err2 := s.Pod("b")
		if _, err := s.Pod("x"); err1 != nil || err2 != nil || a.Handler != "new" || b.Allocated.Node != "n1" || !errors.Is(err, ErrNotFound) || len(s.ContainersOf("a")) != 1 {
			t.Errorf("read %+v, %+v, x: %v, containers %v", a, b, err, s.Containers())
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	// What an earlier subpod reads: a database of version 1, an empty journal. The version
	// is noted beside them.
	files := readFiles(t, file)
	if len(files) != 3 || len(files[".journal"]) != 0 || files[".version"] == nil {
		t.Errorf("files after Close: %d, a journal of %d bytes", len(files), len(files[".journal"]))
	}
}

// TestATornJournalBringsNothingBack: behind a torn entry there may be whole ones,
// as the order in which a disk writes is its own. They must not follow the next
// entry that is written in the place of the torn one.
func TestATornJournalBringsNothingBack(t *testing.T) {
	file := filepath.Join(t.TempDir(), "state.db")
	s := openWith(t, file, byHand())
	size := func(s *Store) int64 {
		s.disk.mu.Lock()
		defer s.disk.mu.Unlock()
		return s.disk.journal.size
	}
	put := func(s *Store, handler string) {
		if err := s.PutPod(Pod{ID: "p", Handler: handler}); err != nil {
			t.Fatal(err)
		}
	}
	put(s, "1")
	first := size(s)
	put(s, "2")
	put(s, "3")
	files := readFiles(t, file)
	files[".journal"][first+headerSize] ^= 1
	file = writeFiles(t, files)
	opts := byHand()
	opts.hook = func(step string, do func() error) error {
		if step == stepCommit || step == stepClear {
			return syscall.ENOSPC // the journal stays
		}
		return do()
	}
	s = openWith(t, file, opts)
	if p, err := s.Pod("p"); err != nil || p.Handler != "1" {
		t.Fatalf("after the cut: %q, %v", p.Handler, err)
	}
	put(s, "4")
	if p, err := openWith(t, copyFiles(t, file), byHand()).Pod("p"); err != nil || p.Handler != "4" {
		t.Errorf("after a kill: %q, %v, want 4", p.Handler, err)
	}
}
