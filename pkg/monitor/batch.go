package monitor

import (
	"errors"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// streamNames are what the log calls a container's streams, by their number.
var streamNames = [streamsEach]string{"stdout", "stderr"}

// record takes what is staged in a slot into the log, and shows it to who is attached.
func (c *container) record(s *slot) {
	err := s.load(0)
	if err != nil {
		c.replacePipe(s, err)
	}
	c.broadcast(s.stream()%streamsEach, s.input()[s.carried():])
	c.mu.Lock()
	defer c.mu.Unlock()
	*s.stamp() = time.Now().UnixNano()
	c.write(s, 0)
}

// write writes the batch of a slot, without its first bytes, and frees the slot. The
// container is locked.
func (c *container) write(s *slot, skip int64) {
	log := c.file(fileLog)
	if log >= 0 && skip == 0 {
		atomic.StoreInt64(s.logSize(), sizeOf(log))
	}
	s.setState(stateWriting)
	if log >= 0 && len(s.input()) > 0 {
		c.account(s, writeLines(s, log, skip))
	}
	s.setState(stateWritten)
	s.finish()
	s.release()
}

func writeLines(s *slot, log int, skip int64) error {
	f := newFormatter(s.buf, atomic.LoadInt64(s.stamp()), streamNames[s.stream()%streamsEach], func(b []byte) error {
		if n := min(skip, int64(len(b))); n > 0 {
			b, skip = b[n:], skip-n
		}
		return writeAll(log, b)
	})
	rest, err := f.lines(s.input())
	if err == nil && s.final() {
		err = f.end(rest)
	}
	s.buf = f.buf[:0]
	return err
}

// account counts what could not be written: a full disk must not stop the container. The
// log keeps whole lines.
func (c *container) account(s *slot, err error) {
	if err != nil {
		_ = unix.Ftruncate(c.file(fileLog), atomic.LoadInt64(s.logSize()))
		if c.lost == 0 {
			c.m.log.Warn("a log cannot be written, output is lost until it can", "container", c.id, "error", err)
		}
		c.lost += int64(s.count())
		return
	}
	if c.lost > 0 {
		c.m.log.Warn("a log can be written again", "container", c.id, "lost_bytes", c.lost)
		c.lost = 0
	}
}

// replacePipe is for a slot with content that cannot be read.
func (c *container) replacePipe(s *slot, err error) {
	c.m.log.Warn("output is lost", "container", c.id, "error", err)
	if err := s.replacePipe(); err != nil {
		c.m.fail(err)
	}
	if err := c.m.keepJournal(); err != nil {
		c.m.fail(err)
	}
}

// resume goes on with a batch that an earlier monitor has left. The container is locked.
func (c *container) resume(s *slot) {
	switch s.state() {
	case stateStaged:
		s.setCount(s.staged())
		s.setState(stateReading)
		fallthrough
	case stateReading:
		if s.count() == 0 {
			s.release()
			return
		}
		if err := s.load(s.count() - s.staged()); err != nil {
			c.replacePipe(s, err)
		}
		*s.stamp() = time.Now().UnixNano()
		c.write(s, 0)
	case stateWriting:
		before, now := atomic.LoadInt64(s.logSize()), int64(0)
		if log := c.file(fileLog); log >= 0 {
			now = sizeOf(log)
		}
		// Somebody else may have cut the log.
		c.write(s, max(0, now-before))
	default:
		s.finish()
		s.release()
	}
}

func sizeOf(fd int) int64 {
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil {
		return 0
	}
	return st.Size
}

func writeAll(fd int, b []byte) error {
	for len(b) > 0 {
		n, err := unix.Write(fd, b)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return err
		}
		b = b[max(0, n):]
	}
	return nil
}
