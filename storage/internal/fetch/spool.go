package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// Spool keeps blobs in files while they are downloaded, so that several pulls share
// one download, and blobs that are whole when a pull fails, so that the next one need
// not fetch them again. It never takes more than its limit, nor more than a quarter of
// what is free; what does not fit is passed on without being kept.
type Spool struct {
	dir   string
	limit int64
	keep  time.Duration

	mu    sync.Mutex
	blobs map[digest.Digest]*blob
}

// blob is a file of the spool.
type blob struct {
	digest digest.Digest
	path   string

	mu       sync.Mutex
	changed  chan struct{} // closed, and replaced, at each change
	size     int64         // -1 until it is known
	written  int64
	fetching bool // somebody downloads
	gone     bool // it never came into the spool

	// These belong to the spool's lock.
	stuck bool // the file is of no use, but could not be removed
	users int
	since time.Time // when the last user left
}

// NewSpool opens the spool in directory dir, which it makes, and removes what is older
// than keep, or from a time to come, or was not completed.
func NewSpool(dir string, limit int64, keep time.Duration) (*Spool, error) {
	s := &Spool{dir: dir, limit: limit, keep: keep, blobs: map[digest.Digest]*blob{}}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		info, err := e.Info()
		d := digest.NewDigestFromEncoded(digest.SHA256, e.Name())
		if err != nil || d.Validate() != nil || !info.Mode().IsRegular() || time.Since(info.ModTime()).Abs() > keep {
			os.RemoveAll(path)
			continue
		}
		s.blobs[d] = &blob{digest: d, path: path, size: info.Size(), written: info.Size(), changed: make(chan struct{}), since: info.ModTime()}
	}
	return s, nil
}

// claim returns the blob of a digest for one more user, and whether that is the first
// one: who then has to admit or drop it. It returns nil where there is no spool, and where
// a file of the blob is in the way.
func (s *Spool) claim(d digest.Digest) (b *blob, first bool) {
	if s == nil || d.Algorithm() != digest.SHA256 {
		return nil, false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expire()
	if b := s.blobs[d]; b != nil && b.stuck && !s.remove(b) {
		return nil, false
	} else if b != nil && !b.stuck {
		b.users++
		return b, false
	}
	b = &blob{digest: d, path: filepath.Join(s.dir, d.Encoded()+".part"), size: -1, fetching: true, changed: make(chan struct{}), users: 1}
	s.blobs[d] = b
	return b, true
}

// admit makes room for a blob that was claimed, and reports whether there is some. The
// caller then downloads it.
func (s *Spool) admit(b *blob, size int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if size < 0 || !s.makeRoom(size) {
		return false
	}
	f, err := os.OpenFile(b.path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return false
	}
	f.Close()
	b.change(func() { b.size = size })
	return true
}

// drop removes a blob that was claimed and can't be kept: who waits for it looks anew.
func (s *Spool) drop(b *blob) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b.users--
	delete(s.blobs, b.digest)
	b.change(func() { b.gone = true })
}

// tidy is expire for those who do not hold the lock.
func (s *Spool) tidy() {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expire()
}

// expire removes what nobody has used for too long, and what could not be removed before.
func (s *Spool) expire() {
	for _, b := range s.blobs {
		if b.users == 0 && (b.stuck || time.Since(b.since) > s.keep) {
			s.remove(b)
		}
	}
}

// makeRoom reports whether size more bytes fit, after the oldest blobs that nobody uses
// have been removed if need be.
func (s *Spool) makeRoom(size int64) bool {
	var fs unix.Statfs_t
	if unix.Statfs(s.dir, &fs) != nil || size > int64(fs.Bavail)*fs.Bsize/4 {
		return false
	}
	var total int64
	var idle []*blob
	for _, b := range s.blobs {
		total += max(b.length(), 0)
		if b.users == 0 {
			idle = append(idle, b)
		}
	}
	slices.SortFunc(idle, func(a, b *blob) int { return a.since.Compare(b.since) })
	for _, b := range idle {
		if total+size <= s.limit && len(s.blobs) <= maxBlobs {
			break
		}
		if s.remove(b) {
			total -= b.length()
		}
	}
	return total+size <= s.limit && len(s.blobs) <= maxBlobs
}

// maxBlobs bounds the number of blobs: each may be empty.
const maxBlobs = 10000

// remove removes a blob, and reports whether it is gone. One whose file can't be removed
// counts for the limit until it is.
func (s *Spool) remove(b *blob) bool {
	if err := os.Remove(b.path); err != nil && !errors.Is(err, os.ErrNotExist) {
		b.stuck = true
		return false
	}
	delete(s.blobs, b.digest)
	return true
}

// discard removes a blob that is not what it should be from the spool. Who uses it goes
// on to do so.
func (s *Spool) discard(b *blob) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.blobs[b.digest] == b {
		s.remove(b)
	}
	b.change(func() { b.gone = true })
}

func (b *blob) isGone() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.gone
}

// release ends the use of a blob. The last user removes it, unless it is whole and to be
// kept.
func (s *Spool) release(b *blob, keep bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if b.users--; b.users > 0 || s.blobs[b.digest] != b {
		return // in use, or dropped
	}
	whole := filepath.Join(s.dir, b.digest.Encoded())
	if b.stuck {
		s.remove(b)
		return
	}
	if keep && b.complete() && b.path != whole {
		if os.Rename(b.path, whole) == nil {
			b.path = whole
		}
	}
	b.since = time.Now()
	if !keep || b.path != whole {
		s.remove(b)
	}
}

// Clear removes all blobs that nobody uses.
func (s *Spool) Clear() {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, b := range s.blobs {
		if b.users == 0 {
			s.remove(b)
		}
	}
}

func (b *blob) complete() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.written == b.size
}

// status returns how much there is, a channel that is closed when this changes, and
// whether the caller now has to download the rest because nobody else does.
func (b *blob) status() (written int64, changed <-chan struct{}, mine bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	mine = !b.fetching && b.written < b.size
	if mine {
		b.fetching = true
	}
	return b.written, b.changed, mine
}

// advance notes n more bytes, and that the download has ended if done.
func (b *blob) advance(n int64, done bool) {
	b.change(func() {
		b.written += n
		if done {
			b.fetching = false
		}
	})
}

// change changes b and tells those who wait for it.
func (b *blob) change(do func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	do()
	close(b.changed)
	b.changed = make(chan struct{})
}

// wait waits until b is in the spool, or is known not to come there.
func (b *blob) wait(ctx context.Context) (there bool, err error) {
	for {
		b.mu.Lock()
		size, gone, changed := b.size, b.gone, b.changed
		b.mu.Unlock()
		if gone || size >= 0 {
			return !gone, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return false, context.Cause(ctx)
		}
	}
}

func (b *blob) length() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.size
}

// errSpool means that the spool can't take a blob; the registry is not to blame.
var errSpool = errors.New("write into the spool")

// fill downloads what is missing from src. The caller ends the download by finish.
func (b *blob) fill(src io.Reader) error {
	f, err := os.OpenFile(b.path, os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("%w: %w", errSpool, err)
	}
	defer f.Close()
	buf := make([]byte, 256<<10)
	for at := b.offset(); ; {
		n, err := src.Read(buf)
		if n > 0 {
			if _, err := f.WriteAt(buf[:n], at); err != nil {
				return fmt.Errorf("%w: %w", errSpool, err)
			}
			at += int64(n)
			b.advance(int64(n), false)
		}
		if errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

func (b *blob) offset() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.written
}

// verify reports whether the file has the blob's digest.
func (b *blob) verify(ctx context.Context) bool {
	f, err := os.Open(b.path)
	if err != nil {
		return false
	}
	defer f.Close()
	v := b.digest.Verifier()
	_, err = io.Copy(v, readerWith{ctx, f})
	return err == nil && v.Verified()
}

// readerWith is a reader that ends with its context.
type readerWith struct {
	ctx context.Context
	r   io.Reader
}

func (r readerWith) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.r.Read(p)
}
