package storage

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/subpod/subpod/storage/internal/fetch"
)

const (
	// contentSilence is how long a content process may say nothing, at least: it sends a
	// message at intervals of guardInterval. A larger PullTimeout takes its place.
	contentSilence = 5 * time.Second
	// contentUnfed is how long a content process may go on while its proxy has nothing
	// for it: it unpacks what it has.
	contentUnfed = 6 * time.Hour
)

// errContentKilled is the cause of a transfer's end by contentWatch.
var errContentKilled = errors.New("the process that reads the image was killed")

// contentWatch ends a content process that does not get on. The process itself ends a
// transfer in which nothing moves (worker.guard), unless it is stopped, hangs, or was
// taken over: then it says nothing. One that was taken over may also say that it lives
// and do nothing; its time is bounded too, but as long as the slowest disk may take.
type contentWatch struct {
	conn  *net.UnixConn
	proxy *fetch.Proxy // nil for a load
	limit time.Duration
	heard pace // messages

	mu    sync.Mutex
	cause error // why it was hung up on
}

func newContentWatch(conn *net.UnixConn, pullTimeout time.Duration, proxy *fetch.Proxy) *contentWatch {
	c := &contentWatch{conn: conn, proxy: proxy, limit: max(pullTimeout, contentSilence)}
	c.heard.step()
	return c
}

// run watches p until done is closed.
func (c *contentWatch) run(p *contentProcess, done <-chan struct{}) {
	tick := time.NewTicker(guardInterval(c.limit))
	defer tick.Stop()
	fed, moved := time.Now(), int64(0)
	for {
		select {
		case <-done:
			return
		case <-tick.C:
		}
		if c.proxy != nil {
			if now := c.proxy.Moved(); now != moved {
				fed, moved = time.Now(), now
			}
		}
		switch {
		case c.heard.idle() >= c.limit:
			c.hangUp(p, fmt.Errorf("%w: it has said nothing for %v: it was stopped, or hangs", errContentKilled, c.limit))
			return
		case time.Since(fed) >= contentUnfed:
			c.hangUp(p, fmt.Errorf("%w: it goes on for %v although its registry sends nothing", errContentKilled, contentUnfed))
			return
		}
	}
}

// hangUp kills p and ends whatever waits for it: it may hold the connection open for as
// long as the kernel does not let it end.
func (c *contentWatch) hangUp(p *contentProcess, cause error) {
	c.mu.Lock()
	if c.cause == nil {
		c.cause = cause
	}
	c.mu.Unlock()
	p.kill()
	_ = c.conn.SetDeadline(time.Unix(1, 0))
}

// why returns why the process was hung up on, or err, with which it ended by itself.
func (c *contentWatch) why(err error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cause != nil {
		return c.cause
	}
	return err
}
