package state

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"time"

	bolt "go.etcd.io/bbolt"
)

// errDamaged says that the file is no database, or that a part of it is missing.
var errDamaged = errors.New("the file is damaged")

// setAside moves a database away that cannot be read, so that the node can start:
// a disk that lost what it had confirmed, or somebody's mistake. What its journal
// still holds is read. Pods that ran are gone with the node in most such cases;
// what is left of them belongs to no record and is removed.
func setAside(file string, log *slog.Logger) error {
	err := checkFile(file)
	if !errors.Is(err, errDamaged) {
		return err
	}
	aside := fmt.Sprintf("%s.damaged-%s", file, time.Now().UTC().Format("20060102T150405.000"))
	if err := os.Rename(file, aside); err != nil {
		return fmt.Errorf("move the damaged state away: %w", err)
	}
	log.Error("the records of pods and containers were damaged and are lost; a new file is made", "kept_as", aside, "error", err)
	return nil
}

// checkFile reads all of a database that nobody has open, if it is there.
func checkFile(file string) (err error) {
	fi, err := os.Stat(file)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read state: %w", err)
	}
	if fi.Size() == 0 {
		return nil // bbolt makes a new one of it
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
	case errors.Is(err, bolt.ErrTimeout):
		return fmt.Errorf("open %s: %w", file, ErrHeld)
	case errors.Is(err, os.ErrPermission):
		return err
	case err != nil:
		return fmt.Errorf("%w: %w", errDamaged, err)
	}
	defer db.Close()
	return db.View(func(tx *bolt.Tx) error {
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
// records: containers without their pod sandbox.
func (s *Store) Check() []error {
	var faults []error
	err := s.disk.db.View(func(tx *bolt.Tx) error {
		for err := range tx.Check() {
			faults = append(faults, err)
		}
		return nil
	})
	if err != nil {
		faults = append(faults, err)
	}
	for _, c := range s.Containers() {
		if _, err := s.Pod(c.PodID); errors.Is(err, ErrNotFound) {
			faults = append(faults, fmt.Errorf("container %s has lost its pod sandbox %s", c.ID, c.PodID))
		}
	}
	return faults
}
