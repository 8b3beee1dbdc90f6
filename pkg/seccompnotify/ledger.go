package seccompnotify

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ErrLedgerFull is returned when as many listeners are in use as a Ledger has entries.
var ErrLedgerFull = errors.New("too many seccomp listeners")

const (
	// Entries is how many listeners a Ledger is for.
	Entries    = 900
	entrySize  = 16
	ledgerSize = Entries * entrySize
	// margin is how far beyond what a Ledger says Release looks: a call may have been received
	// and not been written down yet.
	margin = 1024
)

// Names under which the supervisor holds a ledger and, with an entry of it as a number and a colon
// behind, listeners.
const (
	HeldLedger   = "seccomp-ledger"
	HeldListener = "seccomp:"
)

// Ledger is memory that outlives the process which answers calls. It says, for each listener,
// which calls have been received and not been answered: the kernel does not say it, and
// they would wait for ever.
type Ledger struct {
	file  *os.File
	words []atomic.Uint64 // for each entry the lowest and the highest number

	mu   sync.Mutex
	used [Entries]bool
}

// NewLedger makes an empty ledger.
func NewLedger() (*Ledger, error) {
	fd, err := unix.MemfdCreate("seccomp-ledger", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make a ledger of suspended system calls: %w", err)
	}
	f := os.NewFile(uintptr(fd), "ledger")
	if err := f.Truncate(ledgerSize); err != nil {
		f.Close()
		return nil, err
	}
	return OpenLedger(f)
}

// OpenLedger opens one that another process has made. It takes the file.
func OpenLedger(f *os.File) (*Ledger, error) {
	info, err := f.Stat()
	if err == nil && info.Size() != ledgerSize {
		err = fmt.Errorf("it has %d bytes, want %d", info.Size(), ledgerSize)
	}
	var mem []byte
	if err == nil {
		mem, err = unix.Mmap(int(f.Fd()), 0, ledgerSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("open a ledger of suspended system calls: %w", err)
	}
	return &Ledger{file: f, words: unsafe.Slice((*atomic.Uint64)(unsafe.Pointer(&mem[0])), 2*Entries)}, nil
}

// FD returns the descriptor, to be held for the next process.
func (l *Ledger) FD() int { return int(l.file.Fd()) }

// Close unmaps it. Idempotent. Nothing may use it any more.
func (l *Ledger) Close() error {
	if l.words == nil {
		return nil
	}
	mem := unsafe.Slice((*byte)(unsafe.Pointer(&l.words[0])), ledgerSize)
	l.words = nil
	return errors.Join(unix.Munmap(mem), l.file.Close())
}

// Entry is the part of a Ledger that belongs to one listener.
type Entry struct {
	Number    int
	low, high *atomic.Uint64

	mu   sync.Mutex
	open []uint64 // sorted: the kernel numbers calls upwards
}

// Take returns a free entry. ErrLedgerFull.
func (l *Ledger) Take() (*Entry, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := slices.Index(l.used[:], false)
	if n < 0 {
		return nil, ErrLedgerFull
	}
	return l.entry(n), nil
}

// Again returns the entry that an earlier process has taken; nil for a number that is none.
func (l *Ledger) Again(number int) *Entry {
	l.mu.Lock()
	defer l.mu.Unlock()
	if number < 0 || number >= Entries {
		return nil
	}
	return l.entry(number)
}

func (l *Ledger) entry(n int) *Entry {
	l.used[n] = true
	return &Entry{Number: n, low: &l.words[2*n], high: &l.words[2*n+1]}
}

// Free gives an entry back. Idempotent.
func (l *Ledger) Free(e *Entry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e.low.Store(0)
	e.high.Store(0)
	l.used[e.Number] = false
}

// Received notes that a call was received.
func (e *Entry) Received(id uint64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.open) == 0 {
		e.low.Store(id)
	}
	e.open = append(e.open, id)
	e.high.Store(id)
}

// Answered notes that a call was answered, or is gone.
func (e *Entry) Answered(id uint64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if i := slices.Index(e.open, id); i >= 0 {
		e.open = slices.Delete(e.open, i, i+1)
	}
	if len(e.open) > 0 {
		e.low.Store(e.open[0])
	} else {
		e.low.Store(e.high.Load())
	}
}

// Release continues the calls that another process has received and not answered. first is
// a call that was received since; 0 for none.
func (e *Entry) Release(l *Listener, first uint64) {
	low, high := e.low.Load(), e.high.Load()+margin
	if e.high.Load() == 0 { // it had noted none
		if first < margin {
			return
		}
		low, high = first-margin, first
	}
	if first != 0 {
		high = min(high, first)
	}
	for id := low; id < high && id-low < 1<<20; id++ {
		if l.Valid(id) {
			_ = l.Continue(id) // ErrGone: it needs none
		}
	}
}
