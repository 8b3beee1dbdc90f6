package cli

import (
	"bytes"
	"os"
	"sync"
)

const (
	// maxLog bounds the file daemon.log in the run directory, which is in memory, and
	// keptLog is what is left of it then.
	maxLog  = 16 << 20
	keptLog = 1 << 20
	// logCheck is how much is written between two looks at its size.
	logCheck = 64 << 10
)

// boundedLog writes to a log file that a command has opened for the daemon, by appending,
// and cuts it when it has become too long. What a user has redirected is not cut.
type boundedLog struct {
	file *os.File
	path string // of the file that may be cut

	mu      sync.Mutex
	written int // since the last look
}

// Write implements io.Writer.
func (b *boundedLog) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.written += len(p); b.written >= logCheck {
		b.written = 0
		b.cut()
	}
	return b.file.Write(p)
}

// cut keeps the last lines of a file that is too long. An error changes nothing: the
// next look tries again.
func (b *boundedLog) cut() {
	here, err := b.file.Stat()
	if err != nil || here.Size() <= maxLog {
		return
	}
	named, err := os.Stat(b.path)
	if err != nil || !os.SameFile(here, named) {
		return
	}
	f, err := os.Open(b.path)
	if err != nil {
		return
	}
	defer f.Close()
	tail := make([]byte, keptLog)
	n, _ := f.ReadAt(tail, here.Size()-keptLog)
	_, tail, _ = bytes.Cut(tail[:n], []byte("\n"))
	if b.file.Truncate(0) == nil {
		_, _ = b.file.Write(tail)
	}
}
