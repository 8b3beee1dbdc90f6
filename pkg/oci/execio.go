package oci

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/subpod/subpod/pkg/stdio"
)

// output copies from a pipe or terminal to a writer in the background. Only its
// goroutine uses the writer.
type output struct {
	from *os.File
	done chan struct{} // closed when the writer is not used any more
}

func copyOutput(from *os.File, to io.Writer) *output {
	o := &output{from: from, done: make(chan struct{})}
	go func() {
		defer close(o.done)
		c := copier{to: to, buf: make([]byte, 32<<10)}
		for {
			n, err := from.Read(c.buf)
			c.write(n)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				c.drain(from)
			}
			if err != nil {
				return
			}
		}
	}()
	return o
}

// copier is one copy under way.
type copier struct {
	to  io.Writer
	buf []byte
}

// write writes what was read. A broken writer gets no more: the command must not
// hang on a client that is gone.
func (c *copier) write(n int) {
	if c.to == nil || n <= 0 {
		return
	}
	if _, err := c.to.Write(c.buf[:n]); err != nil {
		c.to = nil
	}
}

// drain copies what is in the pipe now, without waiting for more.
func (c *copier) drain(from *os.File) {
	conn, err := from.SyscallConn()
	if err != nil {
		return
	}
	for range 128 { // a pipe holds 1 MiB at most; a busy writer is not waited for
		var n int
		err := conn.Control(func(fd uintptr) { n, _ = unix.Read(int(fd), c.buf) })
		if err != nil || n <= 0 {
			return
		}
		c.write(n)
	}
}

// drainGrace is how long a client may take to read the last output of a command
// whose context is done.
const drainGrace = time.Second

// finish ends the copying after what is in the pipe now, although processes
// may still hold its other end. It waits for a client that does not read until
// ctx is done, and drainGrace longer. patience is given to a terminal, where what
// was written arrives a moment later.
func (o *output) finish(ctx context.Context, patience time.Duration) {
	if patience > 0 {
		select {
		case <-o.done:
		case <-time.After(patience):
		}
	}
	_ = o.from.SetReadDeadline(time.Unix(1, 0))
	select {
	case <-o.done:
		return
	case <-ctx.Done():
	}
	select {
	case <-o.done:
	case <-time.After(drainGrace):
	}
}

// pipes are the three streams of a command without a terminal. The command
// writes to them itself, the runtime only hands them on.
type pipes struct {
	theirs  []*os.File
	stdin   *os.File
	outputs []*output
	links   []string // the outputs as /proc/PID/fd shows them
}

func newPipes(cmd *exec.Cmd, s stdio.Streams) (*pipes, error) {
	p := &pipes{}
	if s.Stdin != nil {
		r, w, err := os.Pipe()
		if err != nil {
			return nil, err
		}
		p.theirs, p.stdin, cmd.Stdin = append(p.theirs, r), w, r
		go func() {
			_, _ = io.Copy(w, s.Stdin)
			w.Close()
		}()
	}
	var err error
	add := func(w io.Writer) io.Writer {
		if w == nil || err != nil {
			return nil
		}
		r, theirs, pipeErr := os.Pipe()
		if pipeErr != nil {
			err = pipeErr
			return nil
		}
		var st unix.Stat_t
		if err = unix.Fstat(int(theirs.Fd()), &st); err == nil {
			p.links = append(p.links, fmt.Sprintf("pipe:[%d]", st.Ino))
		}
		p.theirs = append(p.theirs, theirs)
		p.outputs = append(p.outputs, copyOutput(r, w))
		return theirs
	}
	if w := add(s.Stdout); w != nil {
		cmd.Stdout = w
	}
	if w := add(s.Stderr); w != nil {
		cmd.Stderr = w
	}
	if err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

func (p *pipes) started() { closeAll(p.theirs) }

func (p *pipes) finish(ctx context.Context) {
	for _, o := range p.outputs {
		o.finish(ctx, 0)
	}
}

func (p *pipes) close() {
	closeAll(p.theirs)
	if p.stdin != nil {
		p.stdin.Close()
	}
	for _, o := range p.outputs {
		o.from.Close()
	}
}

func (p *pipes) holds(link string) bool { return slices.Contains(p.links, link) }

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}
