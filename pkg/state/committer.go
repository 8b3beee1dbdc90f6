package state

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	bolt "go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

var errClosed = errors.New("the state is closed")

// committer stores changes in two steps. A write appends its change to the journal
// and returns: the change outlives this process. One goroutine, run, brings the
// database up to date soon after, synced to the disk: that outlives a power cut,
// which ends the node with all that runs in it, so that the last moments of its
// pods' records are no loss. Waiting for the disk in every request would cost ten
// waits for one pod with a container.
//
// What makes it right:
//
//   - Only run writes to the database, and only run shortens the journal.
//   - A round of run takes the pending changes and the journal's size in one critical
//     section. Each entry below that size is in the batch or was in an earlier one.
//     After the commit these bytes are cut off, and not one more: what was appended
//     meanwhile stays.
//   - A batch that cannot be committed is pending again, below newer changes of the
//     same rows.
//   - The database stores the number of the last entry that it holds, in the same
//     transaction: entries that it has already are skipped, so a kill between commit
//     and cut, or a cut that fails or is left out, does no harm.
type committer struct {
	opts *options
	log  *slog.Logger
	db   *bolt.DB

	mu      sync.Mutex
	journal *journal
	reserve reserve
	seq     uint64         // of the last entry
	pending map[row][]byte // changes that the database does not hold; nil deletes
	closed  bool
	err     error         // of the last round
	rounds  chan struct{} // closed at the end of a round, then replaced
	counts  Counts        // since openCommitter, but for the journal's size
	full    time.Time     // since when writes wait for the journal; zero: they do not

	changed chan struct{} // there are pending changes
	urgent  chan struct{} // a round should begin at once
	closing chan struct{} // closed to ask for the last round
	ended   chan error    // the result of the last round
}

type row struct{ bucket, key string }

var seqKey = []byte("journal")

// openCommitter reads the journal. What the database does not hold is pending until
// start: opening needs no space on the disk.
func openCommitter(db *bolt.DB, path string, log *slog.Logger, opts *options) (*committer, error) {
	c := &committer{
		opts: opts, log: log, db: db,
		pending: map[row][]byte{},
		rounds:  make(chan struct{}),
		changed: make(chan struct{}, 1),
		urgent:  make(chan struct{}, 1),
		closing: make(chan struct{}),
		ended:   make(chan error, 1),
	}
	err := db.View(func(tx *bolt.Tx) error {
		if b := tx.Bucket(metaBucket).Get(seqKey); len(b) == 8 {
			c.seq = binary.BigEndian.Uint64(b)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	var torn int64
	c.journal, torn, err = openJournal(path, opts, func(e entry) {
		if e.Seq > c.seq {
			c.seq = e.Seq
			c.pending[row{e.Bucket, e.Key}] = e.Value
		}
	})
	if err != nil {
		return nil, fmt.Errorf("read the journal %s: %w", path, err)
	}
	c.reserve = openReserve(path+".reserve", opts.reserve, c.journal)
	if torn > 0 {
		log.Warn("the journal ends in a torn entry, which is dropped: the server was killed while it wrote it, or the disk lost it", "journal", path, "bytes", torn)
	}
	return c, nil
}

// start starts the goroutine that writes the database. Nothing is written before.
func (c *committer) start() {
	if c.journal.size > 0 || c.journal.dirty {
		c.urgent <- struct{}{}
	}
	go c.run()
}

// pendingRows returns the changes of a bucket that the database does not hold, for
// the time before start. nil is a deletion.
func (c *committer) pendingRows(bucket string) map[string][]byte {
	out := map[string][]byte{}
	for k, v := range c.pending {
		if k.bucket == bucket {
			out[k.key] = v
		}
	}
	return out
}

// write appends a change to the journal; nil deletes the row. When it returns nil
// the next process finds the change. It waits for the database only where the
// journal is full, and for no longer than options.fullTimeout. A change of a row that is
// stored already may use the reserve where the disk is full.
func (c *committer) write(bucket, key string, value []byte, stored bool) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.waitForSpace(); err != nil {
		return err
	}
	if !stored && c.journal.given > 0 && !c.reserve.fill() {
		return fmt.Errorf("the journal %s has the space of its reserve alone, which is for changes of what is stored: %w", c.journal.path, unix.ENOSPC)
	}
	change := entry{Seq: c.seq + 1, Bucket: bucket, Key: key, Value: value}
	err := c.journal.append(change)
	if isFull(err) && stored && !c.journal.dirty && c.reserve.giveTo(c.journal) {
		err = c.journal.append(change)
	}
	if err != nil {
		return err
	}
	c.seq++
	c.counts.Writes++
	c.pending[row{bucket, key}] = value
	if c.err == nil && c.journal.size >= c.opts.journalLimit/2 {
		notify(c.urgent)
	} else {
		notify(c.changed)
	}
	return nil
}

// waitForSpace returns when the journal may grow. It unlocks c.mu while it waits.
func (c *committer) waitForSpace() error {
	for !c.closed && c.journal.size >= c.opts.journalLimit {
		if c.full.IsZero() {
			c.full = time.Now()
		}
		// One deadline for all writes: those that queue behind this one must not
		// wait for as long again.
		left := time.Until(c.full.Add(c.opts.fullTimeout))
		if left <= 0 {
			return c.fullError(fmt.Errorf("the database has not been written for %v", c.opts.fullTimeout))
		}
		round := c.rounds
		notify(c.urgent)
		c.mu.Unlock()
		timer := time.NewTimer(left)
		select {
		case <-round:
		case <-timer.C:
		}
		timer.Stop()
		c.mu.Lock()
		if c.err != nil {
			return c.fullError(c.err)
		}
	}
	if c.closed {
		return errClosed
	}
	return nil
}

func (c *committer) fullError(cause error) error {
	return fmt.Errorf("the journal %s is full (%d KiB) and the database cannot take it over; the change was refused: %w", c.journal.path, c.journal.size>>10, cause)
}

// notify leaves a signal in a channel of one, if none is there.
func notify(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// run is the committer's goroutine: a round soon after a change, at once when it is
// urgent, again some time after an error, and a last one on close.
func (c *committer) run() {
	var next <-chan time.Time // nil: nothing to do
	for {
		select {
		case <-c.changed:
			if next == nil {
				next = time.After(c.opts.commitDelay)
			}
			continue
		case <-c.closing:
			c.ended <- c.round()
			return
		case <-c.urgent:
		case <-next:
		}
		next = nil
		if c.round() != nil {
			next = time.After(c.opts.retryDelay)
		}
	}
}

// round commits what is pending and cuts the journal to what was written meanwhile.
func (c *committer) round() error {
	c.mu.Lock()
	batch, seq, end := c.pending, c.seq, c.journal.size
	c.pending = map[row][]byte{}
	c.mu.Unlock()

	err := c.commit(batch, seq)
	if err == nil {
		batch = nil
		if !c.keepsSpace() {
			err = c.cut(end)
		}
	}

	c.mu.Lock()
	defer c.mu.Unlock()
	for k, v := range batch {
		if _, newer := c.pending[k]; !newer {
			c.pending[k] = v
		}
	}
	switch {
	case err == nil && c.err != nil:
		c.log.Info("the state is written to the disk again", "journal", c.journal.path)
	case err != nil && (c.err == nil || c.err.Error() != err.Error()):
		c.log.Error("the state cannot be written to the disk; its journal keeps the changes and it is tried again", "journal", c.journal.path, "error", err)
	}
	c.err = err
	if c.counts.Commits++; err != nil {
		c.counts.Failures++
	}
	if err == nil {
		c.full = time.Time{}
		c.reserve.fill()
	}
	close(c.rounds)
	c.rounds = make(chan struct{})
	return err
}

// commit writes a batch, and the number of the last entry that it covers.
func (c *committer) commit(batch map[row][]byte, seq uint64) error {
	if len(batch) == 0 {
		return nil
	}
	return c.opts.do(stepCommit, func() error {
		return c.db.Update(func(tx *bolt.Tx) error {
			for k, v := range batch {
				bucket := tx.Bucket([]byte(k.bucket))
				if bucket == nil {
					return fmt.Errorf("no bucket %q", k.bucket)
				}
				var err error
				if v == nil {
					err = bucket.Delete([]byte(k.key))
				} else {
					err = bucket.Put([]byte(k.key), v)
				}
				if err != nil {
					return err
				}
			}
			return tx.Bucket(metaBucket).Put(seqKey, binary.BigEndian.AppendUint64(nil, seq))
		})
	})
}

// keepsSpace reports whether the journal is better not cut: it has the space of the
// reserve, which others would take on a disk that has no room for another reserve.
func (c *committer) keepsSpace() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.journal.size < min(c.journal.given, c.opts.journalLimit/2) && !c.reserve.fill()
}

// cut removes the first end bytes of the journal, which the database holds. Writes
// wait only while the last bytes of the tail are copied, not for the disk. Where it
// fails the journal stays as it was, and the next round tries again.
func (c *committer) cut(end int64) error {
	c.mu.Lock()
	if c.journal.size == end {
		defer c.mu.Unlock()
		return c.journal.clear()
	}
	copied := c.journal.size
	c.mu.Unlock()
	tail, err := c.journal.tail(end, copied)
	if err != nil {
		return err
	}
	c.mu.Lock()
	old, err := c.journal.replace(tail, end, copied)
	c.mu.Unlock()
	if old != nil {
		_ = old.Close() // unlinked, and read for the last time
	}
	return err
}

// abandon closes the files of a committer that was not started.
func (c *committer) abandon() error {
	c.closed = true
	return errors.Join(c.journal.file.Close(), c.db.Close())
}

// close brings the database up to date and closes both files. What it cannot
// write stays in the journal for the next process.
func (c *committer) close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil
	}
	c.closed = true
	c.mu.Unlock()
	close(c.closing)
	err := <-c.ended
	if err != nil {
		err = fmt.Errorf("the journal keeps changes for the next start, as the database cannot be written: %w", err)
	}
	return errors.Join(err,
		c.opts.do(stepCloseJournal, c.journal.file.Close),
		c.opts.do(stepCloseDB, c.db.Close))
}
