package state

import (
	"encoding/binary"
	"fmt"

	bolt "go.etcd.io/bbolt"

	"github.com/subpod/subpod/pkg/state/format"
)

// migrations bring a store from version i to i+1. An entry, once released, is
// never changed; each has a test with a store of the version before. There is one for
// each version up to format.Version.
var migrations = [format.Version]func(*bolt.Tx) error{
	func(*bolt.Tx) error { return nil }, // 0 → 1: an empty file
}

var (
	metaBucket = []byte("meta")
	versionKey = []byte("version")
)

func migrate(tx *bolt.Tx) error {
	meta, err := tx.CreateBucketIfNotExists(metaBucket)
	if err != nil {
		return err
	}
	version := versionOf(meta)
	if version > uint64(len(migrations)) {
		return fmt.Errorf("version %d, this subpod knows %d: %w (install the newer subpod again, or remove the state directory)", version, len(migrations), ErrTooNew)
	}
	for ; version < uint64(len(migrations)); version++ {
		if err := migrations[version](tx); err != nil {
			return fmt.Errorf("migrate state from version %d: %w", version, err)
		}
	}
	return meta.Put(versionKey, binary.BigEndian.AppendUint64(nil, version))
}

func versionOf(meta *bolt.Bucket) (version uint64) {
	if b := meta.Get(versionKey); len(b) == 8 {
		version = binary.BigEndian.Uint64(b)
	}
	return version
}

// current says whether a database needs no migration.
func current(tx *bolt.Tx) bool {
	meta := tx.Bucket(metaBucket)
	return meta != nil && versionOf(meta) == uint64(len(migrations))
}
