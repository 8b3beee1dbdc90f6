// Package logging makes the loggers of subpod's programs: text or JSON, and below a service
// manager with the priority that its journal shows and filters by.
package logging

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Options of a log.
type Options struct {
	Level slog.Leveler
	JSON  bool
	// Journal puts the priority before each line (sd-daemon(3)): the journal takes it off
	// again. The time is left out of text, since the journal has its own.
	Journal bool
}

// New returns a logger that writes to w, a line a call.
func New(w io.Writer, o Options) *slog.Logger {
	if o.Journal {
		p := &prioritized{to: w}
		return slog.New(&handler{p: p, Handler: plain(p, o)})
	}
	return slog.New(plain(w, o))
}

func plain(w io.Writer, o Options) slog.Handler {
	opts := &slog.HandlerOptions{Level: o.Level}
	if o.JSON {
		return slog.NewJSONHandler(w, opts)
	}
	if o.Journal {
		opts.ReplaceAttr = func(groups []string, a slog.Attr) slog.Attr {
			if len(groups) == 0 && a.Key == slog.TimeKey {
				return slog.Attr{}
			}
			return a
		}
	}
	return slog.NewTextHandler(w, opts)
}

// ToJournal reports whether what is written to the file goes to systemd's journal
// ($JOURNAL_STREAM of systemd.exec(5)).
func ToJournal(f *os.File) bool {
	var st unix.Stat_t
	stream := os.Getenv("JOURNAL_STREAM")
	return stream != "" && unix.Fstat(int(f.Fd()), &st) == nil && stream == fmt.Sprintf("%d:%d", st.Dev, st.Ino)
}

// prioritized puts a priority before each line.
type prioritized struct {
	to io.Writer

	mu     sync.Mutex // of a record, until it is written
	prefix string
	line   []byte
}

// Write implements io.Writer. The caller holds p.mu.
func (p *prioritized) Write(line []byte) (int, error) {
	p.line = append(append(p.line[:0], p.prefix...), line...)
	_, err := p.to.Write(p.line)
	if cap(p.line) > 64<<10 {
		p.line = nil
	}
	return len(line), err
}

// handler tells prioritized of each record.
type handler struct {
	slog.Handler
	p *prioritized
}

// Handle implements slog.Handler.
func (h *handler) Handle(ctx context.Context, r slog.Record) error {
	h.p.mu.Lock()
	defer h.p.mu.Unlock()
	h.p.prefix = priority(r.Level)
	return h.Handler.Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &handler{h.Handler.WithAttrs(attrs), h.p}
}

// WithGroup implements slog.Handler.
func (h *handler) WithGroup(name string) slog.Handler {
	return &handler{h.Handler.WithGroup(name), h.p}
}

// priority is that of syslog(3).
func priority(l slog.Level) string {
	switch {
	case l >= slog.LevelError:
		return "<3>"
	case l >= slog.LevelWarn:
		return "<4>"
	case l >= slog.LevelInfo:
		return "<6>"
	}
	return "<7>"
}

// ParseLevel reads "debug", "info", "warn" or "error".
func ParseLevel(s string) (l slog.Level, err error) {
	switch strings.ToLower(s) {
	case "debug", "info", "warn", "error":
		return l, l.UnmarshalText([]byte(s))
	}
	return 0, fmt.Errorf("%q is not one of debug, info, warn, error", s)
}
