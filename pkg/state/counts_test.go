package state

import (
	"log/slog"
	"path/filepath"
	"testing"
)

// TestCounts: writes are counted at once, and what the database holds is no longer in the
// journal.
func TestCounts(t *testing.T) {
	s, err := Open(filepath.Join(t.TempDir(), "state.db"), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	before := s.Counts()
	for _, id := range []string{"a", "b"} {
		if err := s.PutPod(Pod{ID: id}); err != nil {
			t.Fatal(err)
		}
	}
	if c := s.Counts(); c.Writes != before.Writes+2 {
		t.Errorf("two writes: %+v, %+v", before, c)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if c := s.Counts(); c.Commits <= before.Commits || c.Failures != 0 || c.JournalBytes != 0 {
		t.Errorf("after the last commit: %+v", c)
	}
}
