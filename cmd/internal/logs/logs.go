// Package logs reads container logs in the CRI format: lines with a timestamp, the
// stream, P or F (partial or full), and text.
package logs

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Options of Read.
type Options struct {
	Since time.Time // skip older lines
	Until time.Time // and newer ones; zero: none
	// Skip, if set, reports whether a line of that time is left out.
	Skip func(time.Time) bool
	Tail int // number of existing lines to print, from the end; negative: all
	// Follow waits for more lines until Ended reports that no more will be
	// written, and reads the remaining ones. A nil Ended follows until ctx ends.
	Follow bool
	Ended  func() bool
	// Timestamps puts the time in front of each line.
	Timestamps bool
	// Prefix is put in front of each line.
	Prefix string
}

// Entry is one line of a log.
type Entry struct {
	Time   time.Time
	Stderr bool
	// Partial: the line continues with the next entry of this stream.
	Partial bool
	Text    []byte // without the newline
}

var (
	// ErrFormat reports that a file is not in the CRI log format.
	ErrFormat = errors.New("not a log in CRI format")
	// ErrDamaged reports, once a log was read to its end, that lines of it were left out. The
	// disk was full when they were written, most often: the next line follows what was.
	ErrDamaged = errors.New("what is damaged of the log is left out")
)

// Parse parses one line without its newline. ErrFormat.
func Parse(line []byte) (Entry, error) {
	var e Entry
	stamp, rest, ok1 := bytes.Cut(line, []byte{' '})
	stream, rest, ok2 := bytes.Cut(rest, []byte{' '})
	tag, text, ok3 := bytes.Cut(rest, []byte{' '})
	if !ok1 || !ok2 || !ok3 && len(tag) != 1 {
		return e, fmt.Errorf("%w: %.80q", ErrFormat, line)
	}
	t, err := time.Parse(time.RFC3339Nano, string(stamp))
	if err != nil {
		return e, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	e.Time, e.Text = t, text
	switch string(stream) {
	case "stdout":
	case "stderr":
		e.Stderr = true
	default:
		return e, fmt.Errorf("%w: stream %.20q", ErrFormat, stream)
	}
	e.Partial = len(tag) > 0 && tag[0] == 'P'
	return e, nil
}

// Read copies a log to stdout and stderr, as the container wrote it. ErrFormat where the
// first line is none of a log, ErrDamaged at the end where another one is not.
func Read(ctx context.Context, path string, o Options, stdout, stderr io.Writer) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open the container's log: %w", err)
	}
	defer func() { f.Close() }()
	if o.Tail >= 0 {
		if err := seekTail(f, o.Tail); err != nil {
			return fmt.Errorf("read %s: %w", path, err)
		}
	}
	p := printer{options: o, out: [2]io.Writer{stdout, stderr}, atStart: [2]bool{true, true}}
	if at, err := f.Seek(0, io.SeekCurrent); err == nil {
		p.isLog = at > 0
	}
	r := bufio.NewReaderSize(f, 64<<10)
	var line []byte
	for {
		piece, err := r.ReadSlice('\n')
		line = append(line, piece...)
		switch {
		case err == bufio.ErrBufferFull:
			continue
		case err == nil:
			if err := p.print(line[:len(line)-1]); err != nil {
				return err
			}
			line = line[:0]
			continue
		case err != io.EOF:
			return fmt.Errorf("read %s: %w", path, err)
		}
		if !o.Follow {
			return p.damage()
		}
		ended := o.Ended != nil && o.Ended()
		next, err := wait(ctx, f, path, ended)
		if err != nil {
			return err
		}
		switch {
		case next != nil: // rotated
			f.Close()
			f = next
			r.Reset(f)
			line = line[:0]
		case ended && atEnd(f):
			return p.damage()
		}
	}
}

// pollInterval bounds how long a change of a log, or the exit of its container, can
// stay unnoticed.
const pollInterval = 100 * time.Millisecond

// wait waits until there may be more to read; next is set if the log was rotated.
func wait(ctx context.Context, f *os.File, path string, ended bool) (next *os.File, err error) {
	if !atEnd(f) {
		return nil, nil
	}
	here, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if there, err := os.Stat(path); err == nil && !os.SameFile(here, there) {
		return os.Open(path)
	}
	if ended {
		return nil, nil
	}
	return nil, notified(ctx, path)
}

func atEnd(f *os.File) bool {
	at, err := f.Seek(0, io.SeekCurrent)
	if err != nil {
		return true
	}
	st, err := f.Stat()
	return err != nil || st.Size() <= at
}

// notified waits for a change of the file or its directory, at most pollInterval.
func notified(ctx context.Context, path string) error {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return sleep(ctx)
	}
	defer unix.Close(fd)
	if _, err := unix.InotifyAddWatch(fd, path, unix.IN_MODIFY); err != nil {
		return sleep(ctx)
	}
	_, _ = unix.InotifyAddWatch(fd, filepath.Dir(path), unix.IN_CREATE|unix.IN_MOVED_TO)
	// The file may have changed before the watch was added: never wait for long.
	_, _ = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(pollInterval/time.Millisecond))
	return ctx.Err()
}

func sleep(ctx context.Context) error {
	select {
	case <-ctx.Done():
	case <-time.After(pollInterval):
	}
	return ctx.Err()
}

// printer writes the text of entries as the container wrote it.
type printer struct {
	options Options
	out     [2]io.Writer
	atStart [2]bool // of a line
	isLog   bool    // a line of one was read, or is not looked at
	damaged int     // lines
	first   string  // beginning of the first of them
}

// damage returns ErrDamaged if lines were left out.
func (p *printer) damage() error {
	if p.damaged == 0 {
		return nil
	}
	return fmt.Errorf("%w: lines: %d, the first: %q", ErrDamaged, p.damaged, p.first)
}

func (p *printer) print(line []byte) error {
	e, err := Parse(line)
	if err != nil && p.isLog {
		if p.damaged++; p.damaged == 1 {
			p.first = string(line[:min(len(line), 80)])
		}
		return nil
	}
	if err != nil {
		return err
	}
	p.isLog = true
	if e.Time.Before(p.options.Since) || !p.options.Until.IsZero() && e.Time.After(p.options.Until) || p.options.Skip != nil && p.options.Skip(e.Time) {
		return nil
	}
	i := 0
	if e.Stderr {
		i = 1
	}
	if p.out[i] == nil {
		return nil
	}
	var b []byte
	if p.atStart[i] {
		b = append(b, p.options.Prefix...)
		if p.options.Timestamps {
			b = append(e.Time.AppendFormat(b, "2006-01-02T15:04:05.000000000Z07:00"), ' ')
		}
	}
	b = append(b, e.Text...)
	if !e.Partial {
		b = append(b, '\n')
	}
	p.atStart[i] = !e.Partial
	_, err = p.out[i].Write(b)
	return err
}

// seekTail seeks to the last n lines of a file.
func seekTail(f *os.File, n int) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	const block = 32 << 10
	buf := make([]byte, block)
	end, found := st.Size(), -1 // the end of the last line is none between lines
	for at := end; at > 0; {
		size := min(at, block)
		at -= size
		if _, err := f.ReadAt(buf[:size], at); err != nil && err != io.EOF {
			return err
		}
		for i := size - 1; i >= 0; i-- {
			if buf[i] != '\n' {
				continue
			}
			if found++; found == n {
				_, err := f.Seek(at+i+1, io.SeekStart)
				return err
			}
		}
	}
	_, err = f.Seek(0, io.SeekStart)
	return err
}
