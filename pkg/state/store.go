package state

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"github.com/subpod/subpod/pkg/errclass"
	"github.com/subpod/subpod/pkg/state/format"
)

// The errors of this package.
var (
	// ErrNotFound says that no record has the ID.
	ErrNotFound = errclass.New(errdefs.ErrNotFound, "not found")
	// ErrAmbiguous says that an ID prefix names several records.
	ErrAmbiguous = errclass.New(errdefs.ErrInvalidArgument, "ambiguous ID")
	// ErrHeld says that another process has the store open.
	ErrHeld = errors.New("state is in use by another process")
	// ErrTooNew says that a newer subpod wrote the store.
	ErrTooNew = format.ErrTooNew
)

// Store holds all records: in memory for reading, and in a file. Its methods may be
// called concurrently. What they return is a copy; messages and slices inside are
// shared and must not be changed.
//
// A write that returns nil outlives the process, however it ends. One that returns
// an error has not happened, unless the error says that it may take effect when the
// server is started again.
type Store struct {
	disk       *committer
	pods       table[Pod]
	containers table[Container]
}

// Open opens or makes the store in the file, with a journal beside it, and locks it:
// nothing is changed before that. ErrHeld when another process has it open,
// ErrTooNew when a newer subpod wrote it. A database that cannot be read is moved
// aside, a record that cannot be decoded is left out; both are logged. With an
// existing file, Open needs no space on the disk.
func Open(file string, log *slog.Logger) (*Store, error) { return open(file, log, defaults) }

func open(file string, log *slog.Logger, opts options) (*Store, error) {
	if err := setAside(file, log); err != nil {
		return nil, err
	}
	db, err := bolt.Open(file, 0o600, &bolt.Options{Timeout: openTimeout, NoFreelistSync: true, FreelistType: bolt.FreelistMapType, NoSync: opts.noSync})
	if errors.Is(err, berrors.ErrTimeout) {
		return nil, fmt.Errorf("open %s: %w", file, ErrHeld)
	}
	if err != nil {
		return nil, fmt.Errorf("open state %s: %w", file, err)
	}
	if err := prepare(db); err != nil {
		return nil, errors.Join(fmt.Errorf("read state %s: %w", file, err), db.Close())
	}
	c, err := openCommitter(db, file+".journal", log, &opts)
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	s := &Store{
		disk: c,
		pods: table[Pod]{disk: c, bucket: podBucket, kind: "pod sandbox", key: func(p *Pod) key {
			return key{id: p.ID, created: p.CreatedAt}
		}},
		containers: table[Container]{disk: c, bucket: containerBucket, kind: "container", key: func(c *Container) key {
			return key{id: c.ID, parent: c.PodID, created: c.CreatedAt}
		}},
	}
	if err := errors.Join(s.pods.load(log), s.containers.load(log)); err != nil {
		return nil, errors.Join(fmt.Errorf("read state %s: %w", file, err), c.abandon())
	}
	c.start()
	if err := format.Write(file); err != nil {
		log.Warn("an older subpod will notice only after it was started that it cannot read this state", "error", err)
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

// Close brings the database up to date and releases it. What the disk has no room
// for stays in the journal, for the next Open, and is an error. Idempotent.
func (s *Store) Close() error { return s.disk.close() }

// PutPod writes a record: a new one, or in the place of the one with its ID.
func (s *Store) PutPod(p Pod) error { return s.pods.put(p.ID, p) }

// Pod returns the record with exactly this ID. ErrNotFound.
func (s *Store) Pod(id string) (Pod, error) { return s.pods.get(id) }

// FindPod returns the record with this ID, or the only one whose ID begins with it.
// ErrNotFound, ErrAmbiguous.
func (s *Store) FindPod(prefix string) (Pod, error) { return s.pods.find(prefix) }

// Pods returns all records, oldest first.
func (s *Store) Pods() []Pod { return s.pods.all() }

// UpdatePod changes a record with change, which is given a copy. The result is
// written first and published after it. When change fails nothing happens. Returns
// the new record. ErrNotFound.
func (s *Store) UpdatePod(id string, change func(*Pod) error) (Pod, error) {
	return s.pods.update(id, change)
}

// DeletePod removes a record. Idempotent.
func (s *Store) DeletePod(id string) error { return s.pods.remove(id) }

// PutContainer writes a record: a new one, or in the place of the one with its ID.
func (s *Store) PutContainer(c Container) error { return s.containers.put(c.ID, c) }

// Container returns the record with exactly this ID. ErrNotFound.
func (s *Store) Container(id string) (Container, error) { return s.containers.get(id) }

// FindContainer returns the record with this ID, or the only one whose ID begins
// with it. ErrNotFound, ErrAmbiguous.
func (s *Store) FindContainer(prefix string) (Container, error) { return s.containers.find(prefix) }

// Containers returns all records, oldest first.
func (s *Store) Containers() []Container { return s.containers.all() }

// ContainersOf returns the records of one pod sandbox, oldest first. Its cost does
// not depend on the number of other containers.
func (s *Store) ContainersOf(podID string) []Container { return s.containers.childrenOf(podID) }

// UpdateContainer is UpdatePod for containers.
func (s *Store) UpdateContainer(id string, change func(*Container) error) (Container, error) {
	return s.containers.update(id, change)
}

// DeleteContainer removes a record. Idempotent.
func (s *Store) DeleteContainer(id string) error { return s.containers.remove(id) }
