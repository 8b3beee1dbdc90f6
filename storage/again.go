package storage

import (
	"errors"
	"io/fs"
	"strings"

	cstorage "go.podman.io/storage"
	"golang.org/x/sys/unix"
)

// maxAgain is how often what others disturbed is tried again.
const maxAgain = 3

// again copies an image into the store by do, once more where others have disturbed it.
// What an attempt has unpacked does not count for the limits of the next one.
func again(t *worker, do func() error) error {
	bytes, entries := t.meter.bytes.Load(), t.meter.entries.Load()
	for try := 0; ; try++ {
		err := do()
		if err == nil || try == maxAgain || !disturbed(err) {
			return err
		}
		t.meter.bytes.Store(bytes)
		t.meter.entries.Store(entries)
	}
}

// disturbed reports whether err comes of what others did at the same time.
func disturbed(err error) bool {
	return renamedMeanwhile(err) || removedMeanwhile(err) || unpackedUnlocked(err)
}

// renamedMeanwhile reports whether err is openat2's request to try again: something on
// the machine was renamed or mounted while it walked over a "..". containers/storage
// does not retry when it makes the files of a partial pull.
func renamedMeanwhile(err error) bool {
	var p *fs.PathError
	return errors.As(err, &p) && p.Op == "openat2" && errors.Is(p.Err, unix.EAGAIN)
}

// removedMeanwhile reports whether err is that a layer is gone which was there when the
// library looked for what it need not download: with the image that it belonged to.
func removedMeanwhile(err error) bool {
	return errors.Is(err, cstorage.ErrLayerUnknown) || errors.Is(err, cstorage.ErrParentUnknown) || strings.Contains(err.Error(), "content not found")
}
