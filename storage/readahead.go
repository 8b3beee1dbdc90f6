package storage

import (
	"hash"
	"io"
	"sync"
	"sync/atomic"
)

// Chunks in which a readAhead reads, and how many it is ahead at most.
const (
	aheadSize  = 128 << 10
	aheadCount = 8
)

// readAhead reads a stream in a goroutine of its own, somewhat ahead of who reads from it,
// and computes its digest in another one: beside what the reader does with it.
type readAhead struct {
	full chan *aheadChunk // in the order of the stream
	free chan *aheadChunk
	stop chan struct{}
	once sync.Once
	err  error // of the stream, once full is closed

	at   *aheadChunk // whose rest is not read yet
	rest []byte

	sum    hash.Hash
	summed chan struct{} // closed when all that was read is in sum
	ended  chan struct{} // closed when the stream is read no more
}

// aheadChunk is a piece of a stream, until it was read and is in the digest.
type aheadChunk struct {
	buf  [aheadSize]byte
	n    int
	uses atomic.Int32
}

var aheadChunks = sync.Pool{New: func() any { return new(aheadChunk) }}

// newReadAhead reads src until its end, an error or Close. sum must not be used by others.
func newReadAhead(src io.Reader, sum hash.Hash) *readAhead {
	r := &readAhead{full: make(chan *aheadChunk, aheadCount), free: make(chan *aheadChunk, aheadCount),
		stop: make(chan struct{}), sum: sum, summed: make(chan struct{}), ended: make(chan struct{})}
	for range aheadCount {
		r.free <- nil // made when it is needed
	}
	toSum := make(chan *aheadChunk, aheadCount)
	go func() {
		defer close(r.ended)
		r.err = r.run(src, toSum)
		close(toSum)
		close(r.full)
	}()
	go func() {
		defer close(r.summed)
		for c := range toSum {
			r.sum.Write(c.buf[:c.n])
			r.used(c)
		}
	}()
	return r
}

func (r *readAhead) run(src io.Reader, toSum chan<- *aheadChunk) error {
	for {
		var c *aheadChunk
		select {
		case c = <-r.free:
		case <-r.stop:
		}
		select {
		case <-r.stop:
			return io.ErrClosedPipe
		default:
		}
		if c == nil {
			c = aheadChunks.Get().(*aheadChunk)
		}
		n, err := src.Read(c.buf[:])
		if c.n = n; n > 0 {
			c.uses.Store(2)
			toSum <- c // has room for all chunks, as full has
			r.full <- c
		} else {
			aheadChunks.Put(c)
			if err == nil {
				r.free <- nil
			}
		}
		if err != nil {
			return err
		}
	}
}

// used notes that a chunk was read, or is in the digest.
func (r *readAhead) used(c *aheadChunk) {
	if c.uses.Add(-1) == 0 {
		select {
		case <-r.ended:
			aheadChunks.Put(c)
		default:
			r.free <- c
		}
	}
}

// Read implements io.Reader.
func (r *readAhead) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		if r.at != nil {
			r.used(r.at)
			r.at = nil
		}
		c, ok := <-r.full
		if !ok {
			return 0, r.err
		}
		r.at, r.rest = c, c.buf[:c.n]
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

// digest returns the digest of the stream, which was read to its end.
func (r *readAhead) digest() []byte {
	<-r.summed
	return r.sum.Sum(nil)
}

// Close ends the reading of the stream, and waits for it: what the stream waits for itself must
// have ended before. A Read then returns what was read ahead, and an error.
func (r *readAhead) Close() error {
	r.once.Do(func() { close(r.stop) })
	<-r.ended
	return nil
}
