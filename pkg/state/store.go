package state

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
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
	db         *bolt.DB
	pods       table[Pod]
	containers table[Container]
}

// Open opens or makes the store in the file. ErrHeld when another process has
// it open, ErrTooNew when its version is unknown here.
func Open(file string) (*Store, error) {
	db, err := bolt.Open(file, 0o600, &bolt.Options{Timeout: 3 * time.Second, NoFreelistSync: true, FreelistType: bolt.FreelistMapType})
	if errors.Is(err, bolt.ErrTimeout) {
		return nil, fmt.Errorf("open %s: %w", file, ErrHeld)
	}
	if err != nil {
		return nil, fmt.Errorf("open state %s: %w", file, err)
	}
	s := &Store{db: db}
	s.pods = table[Pod]{db: db, bucket: []byte("pods"), kind: "pod sandbox"}
	s.containers = table[Container]{db: db, bucket: []byte("containers"), kind: "container"}
	if err := s.load(); err != nil {
		return nil, errors.Join(fmt.Errorf("read state %s: %w", file, err), db.Close())
	}
	return s, nil
}

func (s *Store) load() error {
	if err := s.db.Update(func(tx *bolt.Tx) error {
		if err := migrate(tx); err != nil {
			return err
		}
		for _, b := range [][]byte{s.pods.bucket, s.containers.bucket} {
			if _, err := tx.CreateBucketIfNotExists(b); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		return err
	}
	return errors.Join(s.pods.load(), s.containers.load())
}

// Close releases the file.
func (s *Store) Close() error { return s.db.Close() }

// PutPod writes a new record.
func (s *Store) PutPod(p Pod) error { return s.pods.put(p.ID, p) }

// Pod returns the record with the ID or with the unique ID prefix. ErrNotFound,
// ErrAmbiguous.
func (s *Store) Pod(id string) (Pod, error) { return s.pods.get(id) }

// Pods returns all records, oldest first.
func (s *Store) Pods() []Pod {
	all := s.pods.all()
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
	all := s.containers.all()
	slices.SortFunc(all, func(a, b Container) int { return a.CreatedAt.Compare(b.CreatedAt) })
	return all
}

// ContainersOf returns the records of one pod sandbox, oldest first.
func (s *Store) ContainersOf(podID string) []Container {
	return slices.DeleteFunc(s.Containers(), func(c Container) bool { return c.PodID != podID })
}

// UpdateContainer is UpdatePod for containers.
func (s *Store) UpdateContainer(id string, change func(*Container) error) (Container, error) {
	return s.containers.update(id, change)
}

// DeleteContainer removes a record. Idempotent.
func (s *Store) DeleteContainer(id string) error { return s.containers.remove(id) }

// table is one bucket of the file and its decoded copy in memory.
type table[T any] struct {
	db     *bolt.DB
	bucket []byte
	kind   string

	// write orders the writers of this table: read, change, persist, publish.
	write sync.Mutex
	mu    sync.RWMutex
	rows  map[string]T
}

func (t *table[T]) load() error {
	t.rows = map[string]T{}
	return t.db.View(func(tx *bolt.Tx) error {
		return tx.Bucket(t.bucket).ForEach(func(k, v []byte) error {
			var row T
			if err := json.Unmarshal(v, &row); err != nil {
				return fmt.Errorf("%s %s: %w", t.kind, k, err)
			}
			t.rows[string(k)] = row
			return nil
		})
	})
}

func (t *table[T]) persist(id string, row T) error {
	text, err := json.Marshal(row)
	if err != nil {
		return fmt.Errorf("encode %s %s: %w", t.kind, id, err)
	}
	if err := t.db.Update(func(tx *bolt.Tx) error {
		return tx.Bucket(t.bucket).Put([]byte(id), text)
	}); err != nil {
		return fmt.Errorf("write %s %s: %w", t.kind, id, err)
	}
	t.mu.Lock()
	t.rows[id] = row
	t.mu.Unlock()
	return nil
}

func (t *table[T]) put(id string, row T) error {
	t.write.Lock()
	defer t.write.Unlock()
	return t.persist(id, row)
}

func (t *table[T]) get(id string) (T, error) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if row, ok := t.rows[id]; ok {
		return row, nil
	}
	var found T
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
		return found, nil
	case 0:
		return found, fmt.Errorf("%s %q: %w", t.kind, id, ErrNotFound)
	}
	var zero T
	return zero, fmt.Errorf("%s %q names %d of them: %w", t.kind, id, n, ErrAmbiguous)
}

func (t *table[T]) all() []T {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return slices.Collect(maps.Values(t.rows))
}

func (t *table[T]) update(id string, change func(*T) error) (T, error) {
	t.write.Lock()
	defer t.write.Unlock()
	t.mu.RLock()
	row, ok := t.rows[id]
	t.mu.RUnlock()
	if !ok {
		return row, fmt.Errorf("%s %q: %w", t.kind, id, ErrNotFound)
	}
	if err := change(&row); err != nil {
		return row, err
	}
	return row, t.persist(id, row)
}

func (t *table[T]) remove(id string) error {
	t.write.Lock()
	defer t.write.Unlock()
	if err := t.db.Update(func(tx *bolt.Tx) error {
		return tx.Bucket(t.bucket).Delete([]byte(id))
	}); err != nil {
		return fmt.Errorf("delete %s %s: %w", t.kind, id, err)
	}
	t.mu.Lock()
	delete(t.rows, id)
	t.mu.Unlock()
	return nil
}
