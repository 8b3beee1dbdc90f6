package state

// Counts say how the store is used: since it was opened, but for JournalBytes.
type Counts struct {
	// Writes have been acknowledged: they are in the journal.
	Writes uint64
	// Commits have been tried, and Failures of these have failed.
	Commits, Failures uint64
	// JournalBytes is the size of the journal: what the database does not hold yet, and on a
	// full disk also what it has taken over since it got the reserve.
	JournalBytes int64
}

// Counts returns how the store is used.
func (s *Store) Counts() Counts {
	s.disk.mu.Lock()
	defer s.disk.mu.Unlock()
	c := s.disk.counts
	c.JournalBytes = s.disk.journal.size
	return c
}
