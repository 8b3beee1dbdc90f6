package state

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

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
