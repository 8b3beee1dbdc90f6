package state

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"sync"
	"time"

	bolt "go.etcd.io/bbolt"
)

// flushDelay is how long a change may stand in the journal alone.
const flushDelay = 200 * time.Millisecond

// maxJournal is the size in bytes from which on a write waits for the database.
const maxJournal = 8 << 20

// disk keeps changes for good, in two steps. A change is first appended to a
// journal by one system call: that outlives this process, which may be killed
// at any time. The database follows soon after, written through to the disk:
// that outlives a power cut, which ends the node with all that runs in it, so
// that the last moments of its pods' records are no loss. Waiting for the disk
// in every request would cost ten waits for one pod with a container.
//
// Entries are numbered. The database knows the last number that it holds, so
// that a journal which is older than it, or torn, does no harm.
type disk struct {
	db      *bolt.DB
	journal *os.File
	failed  func(error) // told when the database cannot be written; it is tried again

	mu      sync.Mutex
	size    int64  // of the journal
	seq     uint64 // of the last entry
	pending map[row][]byte
	timer   *time.Timer
	closed  bool

	flushing sync.Mutex // one flush at a time
}

type row struct{ bucket, key string }

// entry is one change in the journal; a nil Value is a deletion.
type entry struct {
	Seq    uint64          `json:"n"`
	Bucket string          `json:"b"`
	Key    string          `json:"k"`
	Value  json.RawMessage `json:"v,omitempty"`
}

var seqKey = []byte("journal")

// openDisk replays the journal into the database. What the database has no room
// for stays pending: a server must start on a full disk, too.
func openDisk(db *bolt.DB, path string, failed func(error)) (*disk, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	d := &disk{db: db, journal: f, failed: failed, pending: map[row][]byte{}}
	if err := d.replay(); err != nil {
		return nil, errors.Join(fmt.Errorf("replay the journal %s: %w", path, err), f.Close())
	}
	return d, nil
}

func (d *disk) replay() error {
	if err := d.db.View(func(tx *bolt.Tx) error {
		if b := tx.Bucket(metaBucket).Get(seqKey); len(b) == 8 {
			d.seq = binary.BigEndian.Uint64(b)
		}
		return nil
	}); err != nil {
		return err
	}
	text, err := io.ReadAll(d.journal)
	if err != nil {
		return err
	}
	for {
		var e entry
		n, ok := readEntry(text[d.size:], &e)
		if !ok {
			break // the end, or torn: what follows was never acknowledged
		}
		d.size += int64(n)
		if e.Seq > d.seq {
			d.seq = e.Seq
			d.pending[row{e.Bucket, e.Key}] = e.Value
		}
	}
	if err := d.flushLocked(); err != nil {
		d.failed(err)
		d.timer = time.AfterFunc(10*flushDelay, d.flush)
		return d.journal.Truncate(d.size)
	}
	return nil
}

// rows are the changes of a bucket that the database does not hold yet; nil is a
// deletion.
func (d *disk) rows(bucket string) map[string][]byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := map[string][]byte{}
	for k, v := range d.pending {
		if k.bucket == bucket {
			out[k.key] = v
		}
	}
	return out
}

const headerSize = 8 // length and checksum of the entry that follows

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func readEntry(text []byte, e *entry) (n int, ok bool) {
	if len(text) < headerSize {
		return 0, false
	}
	size, sum := binary.BigEndian.Uint32(text), binary.BigEndian.Uint32(text[4:])
	if uint64(len(text)-headerSize) < uint64(size) {
		return 0, false
	}
	body := text[headerSize : headerSize+int(size)]
	if crc32.Checksum(body, castagnoli) != sum || json.Unmarshal(body, e) != nil {
		return 0, false
	}
	return headerSize + int(size), true
}

// write appends a change; nil deletes the row. It is there for the next
// process when write returns nil.
func (d *disk) write(bucket, key string, value []byte) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return errors.New("the state is closed")
	}
	if d.size > maxJournal {
		if err := d.flushLocked(); err != nil {
			return err
		}
	}
	body, err := json.Marshal(entry{Seq: d.seq + 1, Bucket: bucket, Key: key, Value: value})
	if err != nil {
		return err
	}
	text := make([]byte, headerSize, headerSize+len(body))
	binary.BigEndian.PutUint32(text, uint32(len(body)))
	binary.BigEndian.PutUint32(text[4:], crc32.Checksum(body, castagnoli))
	if _, err := d.journal.Write(append(text, body...)); err != nil {
		// What was written of it must not stand before the next entry.
		return errors.Join(err, d.journal.Truncate(d.size))
	}
	d.seq++
	d.size += int64(headerSize + len(body))
	d.pending[row{bucket, key}] = value
	if d.timer == nil {
		d.timer = time.AfterFunc(flushDelay, d.flush)
	}
	return nil
}

// flush brings the database up to date, while writes go on.
func (d *disk) flush() {
	d.flushing.Lock()
	defer d.flushing.Unlock()
	d.mu.Lock()
	if d.closed {
		d.mu.Unlock()
		return
	}
	d.timer = nil
	changes, seq := d.pending, d.seq
	d.pending = map[row][]byte{}
	d.mu.Unlock()
	err := d.store(changes, seq)
	d.mu.Lock()
	defer d.mu.Unlock()
	if err != nil {
		for k, v := range changes {
			if _, newer := d.pending[k]; !newer {
				d.pending[k] = v
			}
		}
		if d.timer == nil && !d.closed {
			d.timer = time.AfterFunc(10*flushDelay, d.flush)
		}
		d.failed(err)
		return
	}
	if d.seq == seq && !d.closed {
		d.truncate()
	}
}

// flushLocked is flush for a caller that has d.mu and keeps it.
func (d *disk) flushLocked() error {
	if err := d.store(d.pending, d.seq); err != nil {
		return err
	}
	d.pending = map[row][]byte{}
	d.truncate()
	return nil
}

func (d *disk) truncate() {
	if err := d.journal.Truncate(0); err != nil {
		d.failed(err) // harmless: its entries are older than the database
		return
	}
	d.size = 0
}

func (d *disk) store(changes map[row][]byte, seq uint64) error {
	if len(changes) == 0 {
		return nil
	}
	return d.db.Update(func(tx *bolt.Tx) error {
		for k, v := range changes {
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
}

// close brings the database up to date and closes both files.
func (d *disk) close() error {
	d.mu.Lock()
	if d.timer != nil {
		d.timer.Stop()
	}
	d.closed = true
	d.mu.Unlock()
	d.flushing.Lock() // a flush that is under way ends first
	defer d.flushing.Unlock()
	d.mu.Lock()
	defer d.mu.Unlock()
	return errors.Join(d.flushLocked(), d.journal.Close(), d.db.Close())
}
