package state

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"time"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"
)

// errDamaged says that the file is no database, or that a part of it is missing.
var errDamaged = errors.New("the file is damaged")

// setAside moves a database away that cannot be read, so that the node can start:
// a disk that lost what it had confirmed, or somebody's mistake. What its journal
// still holds is read. Pods that ran are gone with the node in most such cases;
// what is left of them belongs to no record and is removed. ErrHeld.
func setAside(file string, log *slog.Logger) error {
	for {
		checked, err := checkFile(file)
		if !errors.Is(err, errDamaged) {
			return err
		}
		aside, moveErr := moveAside(file, checked)
		if errors.Is(moveErr, errReplaced) {
			continue
		}
		if moveErr != nil {
			return fmt.Errorf("move the damaged state away: %w", moveErr)
		}
		log.Error("the records of pods and containers were damaged and are lost; a new file is made", "kept_as", aside, "error", err)
		return nil
	}
}

var errReplaced = errors.New("the file has been replaced")

// moveAside renames a file that was found damaged, while it holds the lock that
// bbolt takes. Without it two servers that start at once could both find the damage,
// and the second would move away what the first has made since. errReplaced when
// the path no longer leads to the file that was checked.
func moveAside(file string, checked os.FileInfo) (aside string, err error) {
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return "", errReplaced
	}
	if err != nil {
		return "", err
	}
	defer f.Close()
	if err := lock(f, openTimeout); err != nil {
		return "", err
	}
	now, err := os.Stat(file)
	if errors.Is(err, os.ErrNotExist) || err == nil && !os.SameFile(now, checked) {
		return "", errReplaced
	}
	if err != nil {
		return "", err
	}
	aside = fmt.Sprintf("%s.damaged-%s", file, time.Now().UTC().Format("20060102T150405.000"))
	return aside, os.Rename(file, aside)
}

// lock takes the lock of a database file. ErrHeld.
func lock(f *os.File, timeout time.Duration) error {
	for end := time.Now().Add(timeout); ; time.Sleep(20 * time.Millisecond) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil || !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("%s: %w", f.Name(), ErrHeld)
		}
	}
}

// checkFile reads all of a database that nobody has open, if it is there. Returns
// which file it has read. ErrHeld, errDamaged.
func checkFile(file string) (fi os.FileInfo, err error) {
	fi, err = os.Stat(file)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read state: %w", err)
	}
	if fi.Size() == 0 {
		return fi, nil // bbolt makes a new one of it
	}
	// The file is mapped into memory: what is missing of it is a fault, and bbolt
	// panics where pages contradict each other.
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: %v", errDamaged, p)
		}
	}()
	db, err := bolt.Open(file, 0o600, &bolt.Options{ReadOnly: true, Timeout: openTimeout})
	switch {
	case errors.Is(err, berrors.ErrTimeout):
		return fi, fmt.Errorf("open %s: %w", file, ErrHeld)
	case errors.Is(err, os.ErrPermission):
		return fi, err
	case err != nil:
		return fi, fmt.Errorf("%w: %w", errDamaged, err)
	}
	defer db.Close()
	return fi, db.View(func(tx *bolt.Tx) error {
		if tx.Size() > fi.Size() {
			return fmt.Errorf("%w: %d bytes of %d are there", errDamaged, fi.Size(), tx.Size())
		}
		if err := tx.ForEach(func(_ []byte, b *bolt.Bucket) error {
			return b.ForEach(func(k, v []byte) error { return nil })
		}); err != nil {
			return fmt.Errorf("%w: %w", errDamaged, err)
		}
		for err := range tx.Check() {
			return fmt.Errorf("%w: %w", errDamaged, err)
		}
		return nil
	})
}

// Check reads all of the database and returns what is wrong with it, and with the
// records: containers without their pod sandbox. The database is not written
// meanwhile; changes go on, to the journal.
func (s *Store) Check() []error {
	faults := checkDatabase(s.disk.db)
	for _, c := range s.Containers() {
		if _, err := s.Pod(c.PodID); !errors.Is(err, ErrNotFound) {
			continue
		}
		// Both may have been removed since they were listed, the container first.
		if _, err := s.Container(c.ID); err == nil {
			faults = append(faults, fmt.Errorf("container %s refers to a pod sandbox that does not exist: %s", c.ID, c.PodID))
		}
	}
	return faults
}

// checkDatabase looks at every page of the database. bbolt compares the pages that a
// transaction sees with the list of free ones that the newest has made, so that a
// commit at the same time looks like damage: the transaction is one that could write,
// of which there is only one at a time.
func checkDatabase(db *bolt.DB) []error {
	tx, err := db.Begin(true)
	if err != nil {
		return []error{err}
	}
	var faults []error
	for err := range tx.Check() {
		faults = append(faults, err)
	}
	if err := tx.Rollback(); err != nil {
		faults = append(faults, err)
	}
	return faults
}
