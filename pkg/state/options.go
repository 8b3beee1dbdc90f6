package state

import "time"

// options are the bounds of a store, and the seam of its tests.
type options struct {
	// commitDelay is how long a change may be in the journal alone.
	commitDelay time.Duration
	// retryDelay is how long the committer waits after an error.
	retryDelay time.Duration
	// journalLimit is the size in bytes from which on a write waits for the committer.
	journalLimit int64
	// fullTimeout is how long writes wait for a full journal before they fail.
	fullTimeout time.Duration
	// reserve is the space in bytes that is set aside for the journal, for the changes that
	// it takes to stop and remove what fills the disk.
	reserve int64

	// noSync leaves out waiting for the disk.
	noSync bool
	// hook, if not nil, stands in for each step that touches the files: it calls do,
	// or fails in its place.
	hook func(step string, do func() error) error
}

var defaults = options{
	commitDelay:  200 * time.Millisecond,
	retryDelay:   2 * time.Second,
	journalLimit: 8 << 20,
	fullTimeout:  10 * time.Second,
	reserve:      1 << 20,
}

// The steps that touch the files, for options.hook.
const (
	stepOpen         = "open the journal"
	stepReplay       = "read the journal"
	stepAppend       = "append an entry"
	stepTrim         = "remove a torn entry"
	stepCommit       = "commit a batch"
	stepClear        = "clear the journal"
	stepTail         = "copy the journal's tail"
	stepRename       = "replace the journal by its tail"
	stepCloseJournal = "close the journal"
	stepCloseDB      = "close the database"
)

func (o *options) do(step string, do func() error) error {
	if o.hook == nil {
		return do()
	}
	return o.hook(step, do)
}
