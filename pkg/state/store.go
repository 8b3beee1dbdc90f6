package state

import (
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	bolt "go.etcd.io/bbolt"
)

// The errors of this package.
var (
	// ErrNotFound says that no record has the ID.
	ErrNotFound = errors.New("not found")
	// ErrAmbiguous says that an ID prefix names several records.
	ErrAmbiguous = errors.New("ambiguous ID")
	// ErrHeld says that another process has the store open.
	ErrHeld = errors.New("state is in use by another process")
	// ErrTooNew says that a newer subpod wrote the store.
	ErrTooNew = errors.New("state was written by a newer version")
)

// Store holds all records, in memory for reading and in a file for good.
// Its methods may be called concurrently. What they return is a copy; messages
// and slices inside are shared and must not be changed.
type Store struct {
	disk       *disk
	pods       table[Pod]
	containers table[Container]
}

// Open opens or makes the store in the file, with a journal beside it. ErrHeld
// when another process has it open, ErrTooNew when its version is unknown here. A
// file that cannot be read is moved aside. A record that cannot is left out.
// log is told when the disk refuses what memory and journal already hold.
func Open(file string, log *slog.Logger) (*Store, error) {
	if err := setAside(file, log); err != nil {
		return nil, err
	}
	db, err := bolt.Open(file, 0o600, &bolt.Options{Timeout: openTimeout, NoFreelistSync: true, FreelistType: bolt.FreelistMapType})
	if errors.Is(err, bolt.ErrTimeout) {
		return nil, fmt.Errorf("open %s: %w", file, ErrHeld)
	}
	if err != nil {
		return nil, fmt.Errorf("open state %s: %w", file, err)
	}
	if err := prepare(db); err != nil {
		return nil, errors.Join(fmt.Errorf("read state %s: %w", file, err), db.Close())
	}
	d, err := openDisk(db, file+".journal", func(err error) {
		log.Error("the state cannot be written to the disk; it is tried again", "file", file, "error", err)
	})
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	s := &Store{
		disk:       d,
		pods:       table[Pod]{disk: d, bucket: podBucket, kind: "pod sandbox"},
		containers: table[Container]{disk: d, bucket: containerBucket, kind: "container"},
	}
	if err := errors.Join(s.pods.load(log), s.containers.load(log)); err != nil {
		return nil, errors.Join(fmt.Errorf("read state %s: %w", file, err), s.Close())
	}
	return s, nil
}

// openTimeout is how long an earlier server may take to let go of the file.
const openTimeout = 3 * time.Second

const (
	podBucket       = "pods"
	containerBucket = "containers"
)

// prepare migrates the database and makes its buckets, once: the disk may be full.
func prepare(db *bolt.DB) error {
	done := false
	if err := db.View(func(tx *bolt.Tx) error {
		done = current(tx)
		return nil
	}); done || err != nil {
		return err
	}
	return db.Update(func(tx *bolt.Tx) error {
		if err := migrate(tx); err != nil {
			return err
		}
		for _, b := range []string{podBucket, containerBucket} {
			if _, err := tx.CreateBucketIfNotExists([]byte(b)); err != nil {
				return err
			}
		}
		return nil
	})
}

// Close brings the file up to date and releases it.
func (s *Store) Close() error { return s.disk.close() }

// PutPod writes a new record.
func (s *Store) PutPod(p Pod) error { return s.pods.put(p.ID, p) }

// Pod returns the record with the ID or with the unique ID prefix. ErrNotFound,
// ErrAmbiguous.
func (s *Store) Pod(id string) (Pod, error) { return s.pods.get(id) }

// Pods returns all records, oldest first.
func (s *Store) Pods() []Pod {
	all := s.pods.all(func(*Pod) bool { return true })
	slices.SortFunc(all, func(a, b Pod) int { return a.CreatedAt.Compare(b.CreatedAt) })
	return all
}

// UpdatePod changes a record with change, which is given a copy: it is written
// to the file first and published after it. When change fails nothing happens.
// Returns the new record. ErrNotFound.
func (s *Store) UpdatePod(id string, change func(*Pod) error) (Pod, error) {
	return s.pods.update(id, change)
}

// DeletePod removes a record. Idempotent.
func (s *Store) DeletePod(id string) error { return s.pods.remove(id) }

// PutContainer writes a new record.
func (s *Store) PutContainer(c Container) error { return s.containers.put(c.ID, c) }

// Container returns the record with the ID or with the unique ID prefix.
// ErrNotFound, ErrAmbiguous.
func (s *Store) Container(id string) (Container, error) { return s.containers.get(id) }

// Containers returns all records, oldest first.
func (s *Store) Containers() []Container {
	return byAge(s.containers.all(func(*Container) bool { return true }))
}

// ContainersOf returns the records of one pod sandbox, oldest first.
func (s *Store) ContainersOf(podID string) []Container {
	return byAge(s.containers.all(func(c *Container) bool { return c.PodID == podID }))
}

func byAge(all []Container) []Container {
	slices.SortFunc(all, func(a, b Container) int { return a.CreatedAt.Compare(b.CreatedAt) })
	return all
}

// UpdateContainer is UpdatePod for containers.
func (s *Store) UpdateContainer(id string, change func(*Container) error) (Container, error) {
	return s.containers.update(id, change)
}

// DeleteContainer removes a record. Idempotent.
func (s *Store) DeleteContainer(id string) error { return s.containers.remove(id) }

// table is one bucket of the file and its decoded copy in memory.
type table[T any] struct {
	disk   *disk
	bucket string
	kind   string

	// write orders the writers of this table: read, change, persist, publish.
	write sync.Mutex
	mu    sync.RWMutex
	rows  map[string]*T // never changed, but replaced
}

func (t *table[T]) load(log *slog.Logger) error {
	t.rows = map[string]*T{}
	pending := t.disk.rows(t.bucket)
	add := func(id string, text []byte) {
		var row T
		if err := json.Unmarshal(text, &row); err != nil {
			log.Error("a record cannot be read and is left out", "kind", t.kind, "id", id, "error", err)
			return
		}
		t.rows[id] = &row
	}
	for id, text := range pending {
		if text != nil {
			add(id, text)
		}
	}
	return t.disk.db.View(func(tx *bolt.Tx) error {
		return tx.Bucket([]byte(t.bucket)).ForEach(func(k, v []byte) error {
			if _, newer := pending[string(k)]; !newer {
				add(string(k), v)
			}
			return nil
		})
	})
}

func (t *table[T]) persist(id string, row T) error {
	text, err := json.Marshal(row)
	if err != nil {
		return fmt.Errorf("encode %s %s: %w", t.kind, id, err)
	}
	if err := t.disk.write(t.bucket, id, text); err != nil {
		return fmt.Errorf("write %s %s: %w", t.kind, id, err)
	}
	t.mu.Lock()
	t.rows[id] = &row
	t.mu.Unlock()
	return nil
}

func (t *table[T]) put(id string, row T) error {
	t.write.Lock()
	defer t.write.Unlock()
	return t.persist(id, row)
}

func (t *table[T]) get(id string) (none T, err error) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if row, ok := t.rows[id]; ok {
		return *row, nil
	}
	var found *T
	n := 0
	if id != "" {
		for k, row := range t.rows {
			if strings.HasPrefix(k, id) {
				found = row
				n++
			}
		}
	}
	switch n {
	case 1:
		return *found, nil
	case 0:
		return none, fmt.Errorf("%s %q: %w", t.kind, id, ErrNotFound)
	}
	return none, fmt.Errorf("%s %q names %d of them: %w", t.kind, id, n, ErrAmbiguous)
}

// all returns the rows that are wanted, in no order.
func (t *table[T]) all(want func(*T) bool) (out []T) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for _, row := range t.rows {
		if want(row) {
			out = append(out, *row)
		}
	}
	return out
}

func (t *table[T]) update(id string, change func(*T) error) (row T, err error) {
	t.write.Lock()
	defer t.write.Unlock()
	t.mu.RLock()
	old, ok := t.rows[id]
	t.mu.RUnlock()
	if !ok {
		return row, fmt.Errorf("%s %q: %w", t.kind, id, ErrNotFound)
	}
	row = *old
	if err := change(&row); err != nil {
		return row, err
	}
	return row, t.persist(id, row)
}

func (t *table[T]) remove(id string) error {
	t.write.Lock()
	defer t.write.Unlock()
	if err := t.disk.write(t.bucket, id, nil); err != nil {
		return fmt.Errorf("delete %s %s: %w", t.kind, id, err)
	}
	t.mu.Lock()
	delete(t.rows, id)
	t.mu.Unlock()
	return nil
}
