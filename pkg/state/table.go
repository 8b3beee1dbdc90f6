package state

import (
	"cmp"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	bolt "go.etcd.io/bbolt"
)

// table is one bucket of the file and its decoded copy in memory.
type table[T any] struct {
	disk   *committer
	bucket string
	kind   string
	key    func(*T) key

	// write orders the writers of this table: read, change, persist, publish.
	write    sync.Mutex
	mu       sync.RWMutex
	rows     map[string]*T   // a row is replaced, never changed
	sorted   []*T            // the same rows, oldest first
	children map[string][]*T // those with a parent by it, oldest first
}

// key is what rows are found and ordered by.
type key struct {
	id, parent string
	created    time.Time
}

func (t *table[T]) load(log *slog.Logger) error {
	t.rows, t.children = map[string]*T{}, map[string][]*T{}
	pending := t.disk.pendingRows(t.bucket)
	add := func(id string, text []byte) {
		var row T
		if err := json.Unmarshal(text, &row); err != nil {
			log.Error("a record cannot be decoded and is left out", "kind", t.kind, "id", id, "error", err)
			return
		}
		t.publish(id, &row)
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

// publish shows a row to readers; nil removes it.
func (t *table[T]) publish(id string, row *T) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if old, ok := t.rows[id]; ok {
		delete(t.rows, id)
		t.sorted = t.without(t.sorted, old)
		if parent := t.key(old).parent; parent != "" {
			if t.children[parent] = t.without(t.children[parent], old); len(t.children[parent]) == 0 {
				delete(t.children, parent)
			}
		}
	}
	if row == nil {
		return
	}
	t.rows[id] = row
	t.sorted = t.with(t.sorted, row)
	if parent := t.key(row).parent; parent != "" {
		t.children[parent] = t.with(t.children[parent], row)
	}
}

// with adds a row to sorted ones, without removes one.
func (t *table[T]) with(rows []*T, row *T) []*T {
	i, _ := slices.BinarySearchFunc(rows, row, t.byAge)
	return slices.Insert(rows, i, row)
}

func (t *table[T]) without(rows []*T, row *T) []*T {
	i, found := slices.BinarySearchFunc(rows, row, t.byAge)
	if !found {
		return rows
	}
	return slices.Delete(rows, i, i+1)
}

// byAge orders rows by when they were made.
func (t *table[T]) byAge(a, b *T) int {
	x, y := t.key(a), t.key(b)
	return cmp.Or(x.created.Compare(y.created), strings.Compare(x.id, y.id))
}

func (t *table[T]) persist(id string, row T) error {
	text, err := json.Marshal(row)
	if err != nil {
		return fmt.Errorf("encode %s %s: %w", t.kind, id, err)
	}
	if err := t.disk.write(t.bucket, id, text, t.has(id)); err != nil {
		return fmt.Errorf("write %s %s: %w", t.kind, id, err)
	}
	t.publish(id, &row)
	return nil
}

func (t *table[T]) has(id string) bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	_, ok := t.rows[id]
	return ok
}

func (t *table[T]) put(id string, row T) error {
	t.write.Lock()
	defer t.write.Unlock()
	return t.persist(id, row)
}

func (t *table[T]) get(id string) (row T, err error) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if found, ok := t.rows[id]; ok {
		return *found, nil
	}
	return row, fmt.Errorf("%s %q: %w", t.kind, id, ErrNotFound)
}

func (t *table[T]) find(prefix string) (row T, err error) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if found, ok := t.rows[prefix]; ok {
		return *found, nil
	}
	var found *T
	n := 0
	if prefix != "" {
		for id, row := range t.rows {
			if strings.HasPrefix(id, prefix) {
				found = row
				n++
			}
		}
	}
	switch n {
	case 1:
		return *found, nil
	case 0:
		return row, fmt.Errorf("%s %q: %w", t.kind, prefix, ErrNotFound)
	}
	return row, fmt.Errorf("%s %q is the beginning of %d IDs: %w", t.kind, prefix, n, ErrAmbiguous)
}

// all returns the rows, oldest first.
func (t *table[T]) all() []T {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return clone(t.sorted)
}

// childrenOf returns the rows of one parent, oldest first.
func (t *table[T]) childrenOf(parent string) []T {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return clone(t.children[parent])
}

func clone[T any](rows []*T) []T {
	if len(rows) == 0 {
		return nil
	}
	out := make([]T, len(rows))
	for i, row := range rows {
		out[i] = *row
	}
	return out
}

func (t *table[T]) update(id string, change func(*T) error) (T, error) {
	t.write.Lock()
	defer t.write.Unlock()
	row, err := t.get(id)
	if err != nil {
		return row, err
	}
	if err := change(&row); err != nil {
		return row, err
	}
	return row, t.persist(id, row)
}

func (t *table[T]) remove(id string) error {
	t.write.Lock()
	defer t.write.Unlock()
	if err := t.disk.write(t.bucket, id, nil, true); err != nil {
		return fmt.Errorf("delete %s %s: %w", t.kind, id, err)
	}
	t.publish(id, nil)
	return nil
}
