package storage

import (
	"sync/atomic"
	"time"
)

// meaningful is how many bytes of a transfer count as progress. A server that sends a
// byte now and then does not keep a pull alive.
const meaningful = 16 << 10

// pace notes when a transfer has last made progress. Its zero value made some when the
// process began. Time in which the machine sleeps, and changes of its clock, do not count:
// a pull goes on where a laptop was closed.
type pace struct {
	last  atomic.Int64 // nanoseconds since begun
	bytes atomic.Int64 // since then
}

// begun has a reading of the monotonic clock, which the difference to another one uses.
var begun = time.Now()

// step notes progress: a blob begun or done, an answer, a layer that is being unpacked.
func (p *pace) step() {
	p.bytes.Store(0)
	p.last.Store(int64(time.Since(begun)))
}

// add notes n bytes, which are progress once they are enough.
func (p *pace) add(n int64) {
	if p.bytes.Add(n) >= meaningful {
		p.step()
	}
}

// idle is the time since the last progress.
func (p *pace) idle() time.Duration { return time.Since(begun) - time.Duration(p.last.Load()) }
