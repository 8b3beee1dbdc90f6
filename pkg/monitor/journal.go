package monitor

import (
	"fmt"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The journal is memory that outlives the monitor (memfd_create(2), kept by the keeper),
// with a number of slots. A batch of output goes through one of them, in these steps. The
// monitor may be killed between any two, and within each:
//
//	free     → staged   the slot is the stream's
//	         splice(2) moves the batch from the container's pipe into the slot's pipe: each
//	         byte is in one of the two at any time
//	staged   → reading  the number of bytes is noted
//	         they are read into the slot; what is left in the pipe tells how many were
//	reading  → writing  the time of the batch and the size of the log are noted
//	         the lines are written; the size of the log tells how much was. Formatted again,
//	         they are the same
//	writing  → written
//	         what follows the last line end is kept for the next batch of the stream
//	written  → free
const (
	stateFree = iota
	stateStaged
	stateReading
	stateWriting
	stateWritten
)

const (
	journalMagic = 0x31676f6c646f7073
	slots        = 16
	maxBatch     = 64 << 10
	slotData     = 4096 // where the data of a slot begins
	slotSize     = slotData + maxPiece + maxBatch

	maxContainers = 8192
	streamsEach   = 2

	slotsAt     = 4096
	lengthsAt   = slotsAt + slots*slotSize
	carryAt     = lengthsAt + maxContainers*streamsEach*4
	journalSize = carryAt + maxContainers*streamsEach*maxPiece
)

// journal is the memory, and the pipes of its slots.
type journal struct {
	fd    int
	mem   []byte
	slots [slots]*slot
	idle  chan *slot
}

// slot is one place for a batch.
type slot struct {
	j      *journal
	mem    []byte
	r, w   int // its pipe
	number int
	buf    []byte // of the formatter
}

// newJournal makes the memory and the pipes.
func newJournal() (*journal, []int, error) {
	fd, err := unix.MemfdCreate("subpod-journal", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, nil, fmt.Errorf("memfd_create: %w", err)
	}
	if err := unix.Ftruncate(fd, int64(journalSize)); err != nil {
		return nil, nil, fmt.Errorf("size the journal: %w", err)
	}
	fds := []int{fd}
	for range slots {
		var p [2]int
		if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
			return nil, nil, fmt.Errorf("make the journal's pipes: %w", err)
		}
		fds = append(fds, p[0], p[1])
	}
	j, err := openJournal(fds)
	if err == nil {
		*j.word64(0) = journalMagic
	}
	return j, fds, err
}

// openJournal takes a journal over, with the descriptors that newJournal returned.
func openJournal(fds []int) (*journal, error) {
	if len(fds) != 1+2*slots {
		return nil, fmt.Errorf("the journal has %d descriptors, not %d", len(fds), 1+2*slots)
	}
	mem, err := unix.Mmap(fds[0], 0, journalSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("map the journal: %w", err)
	}
	j := &journal{fd: fds[0], mem: mem, idle: make(chan *slot, slots)}
	for i := range slots {
		at := slotsAt + i*slotSize
		j.slots[i] = &slot{j: j, number: i, mem: mem[at : at+slotSize], r: fds[1+2*i], w: fds[2+2*i]}
	}
	return j, nil
}

// files are the descriptors of the journal.
func (j *journal) files() []int {
	fds := []int{j.fd}
	for _, s := range j.slots {
		fds = append(fds, s.r, s.w)
	}
	return fds
}

func (j *journal) word64(at int) *uint64 { return (*uint64)(unsafe.Pointer(&j.mem[at])) }

// carry is where the unfinished line of a stream is kept.
func (j *journal) carry(stream int) []byte {
	at := carryAt + stream*maxPiece
	n := min(atomic.LoadUint32(j.length(stream)), maxPiece)
	return j.mem[at : at+int(n) : at+maxPiece]
}

func (j *journal) length(stream int) *uint32 {
	return (*uint32)(unsafe.Pointer(&j.mem[lengthsAt+4*stream]))
}

// forget gives the memory of a stream back.
func (j *journal) forget(stream int) {
	atomic.StoreUint32(j.length(stream), 0)
	_ = unix.Fallocate(j.fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(carryAt+stream*maxPiece), maxPiece)
}

// The words of a slot.
func (s *slot) word(i int) *uint32 { return (*uint32)(unsafe.Pointer(&s.mem[4*i])) }

func (s *slot) state() uint32     { return atomic.LoadUint32(s.word(0)) }
func (s *slot) setState(v uint32) { atomic.StoreUint32(s.word(0), v) }
func (s *slot) stream() int       { return int(atomic.LoadUint32(s.word(1))) }
func (s *slot) count() int        { return int(atomic.LoadUint32(s.word(2))) }
func (s *slot) setCount(n int)    { atomic.StoreUint32(s.word(2), uint32(n)) }
func (s *slot) carried() int      { return int(atomic.LoadUint32(s.word(3))) }
func (s *slot) stamp() *int64     { return (*int64)(unsafe.Pointer(&s.mem[16])) }
func (s *slot) logSize() *int64   { return (*int64)(unsafe.Pointer(&s.mem[24])) }
func (s *slot) data() []byte      { return s.mem[slotData:] }

// final: no more comes, so that an unfinished line is written.
func (s *slot) final() bool { return atomic.LoadUint32(s.word(8)) == 1 }

// begin takes the slot for a stream.
func (s *slot) begin(stream int, final bool) {
	atomic.StoreUint32(s.word(1), uint32(stream))
	flag := uint32(0)
	if final {
		flag = 1
	}
	atomic.StoreUint32(s.word(8), flag)
	s.setCount(0)
	s.setState(stateStaged)
}

func (s *slot) release() {
	s.setState(stateFree)
	s.j.idle <- s
}

// stage moves what is in a pipe, or a terminal, into the slot's pipe: 0 at its end.
func (s *slot) stage(from int) (int, error) {
	for {
		n, err := unix.Splice(from, nil, s.w, nil, maxBatch, unix.SPLICE_F_NONBLOCK|unix.SPLICE_F_MOVE)
		if err == unix.EINTR {
			continue
		}
		return int(n), err
	}
}

// load reads what was staged behind what is carried over. What cannot be read is lost, with
// the pipe: there can be pages of a file in it that are gone.
func (s *slot) load(done int) error {
	stream := s.stream()
	carry := s.j.carry(stream)
	atomic.StoreUint32(s.word(3), uint32(len(carry)))
	copy(s.data(), carry)
	n := s.count()
	data := s.data()[len(carry) : len(carry)+n]
	for done < n {
		got, err := unix.Read(s.r, data[done:])
		if err == unix.EINTR {
			continue
		}
		if err != nil || got <= 0 {
			s.setCount(done)
			return fmt.Errorf("%d bytes of output cannot be read: %w", n-done, err)
		}
		done += got
	}
	return nil
}

// input is the unfinished line of before and the batch.
func (s *slot) input() []byte { return s.data()[:s.carried()+s.count()] }

// finish keeps the unfinished line for the next batch and frees the slot's content.
func (s *slot) finish() {
	stream, rest := s.stream(), remainder(s.input())
	if s.final() {
		rest = nil
	}
	at := carryAt + stream*maxPiece
	copy(s.j.mem[at:at+maxPiece], rest)
	atomic.StoreUint32(s.j.length(stream), uint32(len(rest)))
}

// staged is how many bytes there are in the slot's pipe.
func (s *slot) staged() int {
	n, err := unix.IoctlGetInt(s.r, unix.TIOCINQ)
	if err != nil {
		return 0
	}
	return n
}

// replacePipe is for a pipe with content that cannot be read.
func (s *slot) replacePipe() error {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return os.NewSyscallError("pipe2", err)
	}
	unix.Close(s.r)
	unix.Close(s.w)
	s.r, s.w = p[0], p[1]
	return nil
}
