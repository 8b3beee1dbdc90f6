package state

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestDamagedFile: whatever becomes of the database, the store opens, keeps the
// damaged file, and goes on with what the journal holds.
func TestDamagedFile(t *testing.T) {
	dir := t.TempDir()
	whole := filepath.Join(dir, "whole.db")
	s, err := Open(whole, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	for i := range 200 {
		cfg := &runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Name: fmt.Sprint(i)}}
		if err := s.PutPod(Pod{ID: fmt.Sprintf("%064d", i), Config: Msg(cfg)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(whole)
	if err != nil {
		t.Fatal(err)
	}
	page := os.Getpagesize()
	damages := map[string]func([]byte) []byte{
		"empty":                func([]byte) []byte { return nil },
		"one byte":             func(b []byte) []byte { return b[:1] },
		"one page":             func(b []byte) []byte { return b[:page] },
		"half":                 func(b []byte) []byte { return b[:len(b)/2] },
		"half a page short":    func(b []byte) []byte { return b[:len(b)-page/2] },
		"no head":              func(b []byte) []byte { clear(b[:2*page]); return b },
		"zeroes in the middle": func(b []byte) []byte { clear(b[2*page : len(b)-page]); return b },
		"text":                 func(b []byte) []byte { copy(b[2*page:], "this is no page of a database"); return b },
	}
	for p := 2; p < len(data)/page; p++ {
		damages[fmt.Sprintf("page %d lost", p)] = func(b []byte) []byte { clear(b[p*page : (p+1)*page]); return b }
	}
	for name, damage := range damages {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "state.db")
			if err := os.WriteFile(file, damage(append([]byte(nil), data...)), 0o600); err != nil {
				t.Fatal(err)
			}
			for range 2 { // the second time it is whole
				s, err := Open(file, slog.New(slog.DiscardHandler))
				if err != nil {
					t.Fatal(err)
				}
				if err := s.PutPod(Pod{ID: "new"}); err != nil {
					t.Error(err)
				}
				if p, err := s.Pod("new"); err != nil || p.ID != "new" {
					t.Errorf("%v, %v", p, err)
				}
				if err := s.Close(); err != nil {
					t.Error(err)
				}
			}
			aside, _ := filepath.Glob(file + ".damaged-*")
			if len(aside) > 1 {
				t.Errorf("set aside: %v", aside)
			}
		})
	}
}

// Check finds nothing wrong with records that come and go while it looks.
func TestCheckWhileWriting(t *testing.T) {
	opts := defaults
	opts.commitDelay, opts.noSync = time.Millisecond, true
	s := openWith(t, filepath.Join(t.TempDir(), "state.db"), opts)
	var writers sync.WaitGroup
	for w := range 4 {
		writers.Go(func() {
			for i := range 1_000 {
				pod, ctr := fmt.Sprintf("%d-%d", w, i), fmt.Sprintf("c%d-%d", w, i)
				for _, err := range []error{
					s.PutPod(Pod{ID: pod}),
					s.PutContainer(Container{ID: ctr, PodID: pod}),
					s.DeleteContainer(ctr),
					s.DeletePod(pod),
				} {
					if err != nil {
						t.Error(err)
						return
					}
				}
			}
		})
	}
	defer writers.Wait()
	written := make(chan struct{})
	go func() {
		writers.Wait()
		close(written)
	}()
	for {
		if faults := s.Check(); len(faults) > 0 {
			t.Fatalf("faults: %v", faults)
		}
		select {
		case <-written:
			return
		default:
		}
	}
}

// TestDamagedFileAndJournal: what the journal holds is read although the database
// is lost, and numbering goes on.
func TestDamagedFileAndJournal(t *testing.T) {
	file := filepath.Join(t.TempDir(), "state.db")
	s := openWith(t, file, byHand())
	if err := s.PutPod(Pod{ID: "committed"}); err != nil {
		t.Fatal(err)
	}
	if err := round(s); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.PutPod(Pod{ID: "a"}), s.PutPod(Pod{ID: "b"}), s.DeletePod("b")); err != nil {
		t.Fatal(err)
	}
	files := readFiles(t, file)
	files[""] = files[""][:100]
	file = writeFiles(t, files)
	for range 2 {
		s := openWith(t, file, byHand())
		if all := s.Pods(); len(all) != 1 || all[0].ID != "a" {
			t.Errorf("records %+v, want a", all)
		}
		if err := errors.Join(s.PutPod(Pod{ID: "c"}), s.DeletePod("c"), s.Close()); err != nil {
			t.Fatal(err)
		}
	}
	if aside, _ := filepath.Glob(file + ".damaged-*"); len(aside) != 1 {
		t.Errorf("set aside: %v", aside)
	}
}

// TestSetAsideByTwo: of two servers that find the damage at once, the second leaves
// the file that the first has made alone.
func TestSetAsideByTwo(t *testing.T) {
	file := filepath.Join(t.TempDir(), "state.db")
	if err := os.WriteFile(file, []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	checked, err := checkFile(file) // by the second one
	if !errors.Is(err, errDamaged) {
		t.Fatal(err)
	}
	first := openWith(t, file, byHand())
	if _, err := moveAside(file, checked); !errors.Is(err, ErrHeld) {
		t.Errorf("while the first has it open: %v, want ErrHeld", err)
	}
	if err := errors.Join(first.PutPod(samplePod()), first.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := moveAside(file, checked); !errors.Is(err, errReplaced) {
		t.Errorf("after the first has closed it: %v, want errReplaced", err)
	}
	if _, err := openWith(t, file, byHand()).Pod("aabb"); err != nil {
		t.Error(err)
	}

	// One that somebody holds is not moved, whatever is in it.
	held, err := os.Create(filepath.Join(t.TempDir(), "held.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer held.Close()
	if err := lock(held, 0); err != nil {
		t.Fatal(err)
	}
	other, err := os.Open(held.Name())
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := lock(other, 0); !errors.Is(err, ErrHeld) {
		t.Errorf("a second lock: %v, want ErrHeld", err)
	}
}

// TestDamagedFileAndManyServers: of many that start at once at a damaged file one
// gets it, and its records stay.
func TestDamagedFileAndManyServers(t *testing.T) {
	file := filepath.Join(t.TempDir(), "state.db")
	if err := os.WriteFile(file, []byte("damaged"), 0o600); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	stores := make([]*Store, 8)
	for i := range stores {
		wg.Go(func() {
			s, err := open(file, discard, byHand())
			if err != nil && !errors.Is(err, ErrHeld) {
				t.Error(err)
			}
			stores[i] = s
		})
	}
	wg.Wait()
	n := 0
	for _, s := range stores {
		if s != nil {
			n++
			if err := errors.Join(s.PutPod(samplePod()), s.Close()); err != nil {
				t.Error(err)
			}
		}
	}
	if n != 1 {
		t.Errorf("%d servers have the state, want 1", n)
	}
	if _, err := openWith(t, file, byHand()).Pod("aabb"); err != nil {
		t.Error(err)
	}
}
