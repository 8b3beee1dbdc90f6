package storage

import (
	"sync/atomic"
	"time"
)

// meaningful is how many bytes of a transfer count as progress. A server that sends a
// byte now and then does not keep a pull alive.
const meaningful = 16 << 10

// pace notes when a transfer has last made progress.
type pace struct {
	last  atomic.Int64 // Unix nanoseconds
	bytes atomic.Int64 // since then
}

// step notes progress: a blob begun or done, an answer, a layer that is being unpacked.
func (p *pace) step() {
	p.bytes.Store(0)
	p.last.Store(time.Now().UnixNano())
}

// add notes n bytes, which are progress once they are enough.
func (p *pace) add(n int64) {
	if p.bytes.Add(n) >= meaningful {
		p.step()
	}
}

// idle is the time since the last progress.
func (p *pace) idle() time.Duration { return time.Since(time.Unix(0, p.last.Load())) }
