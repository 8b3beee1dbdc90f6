// Package logging makes the loggers of subpod's programs: text or JSON, and below a service
// manager with the priority that its journal shows and filters by.
package logging

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
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

// New returns a logger that writes to w, a line a call, each with the attributes. A w that
// blocks holds nobody up who logs: see queue. The process ends by Exit.
func New(w io.Writer, o Options, attrs ...any) *slog.Logger {
	always := o
	always.Level = slog.LevelWarn
	direct := slog.New(handlerTo(w, always)).With(attrs...)
	q := &queue{to: w, lost: func(lines int) {
		direct.Warn("lines of the log are lost: its reader had stopped reading", "lines", lines)
	}}
	queues.add(q)
	return slog.New(handlerTo(q, o)).With(attrs...)
}

func handlerTo(w io.Writer, o Options) slog.Handler {
	if o.Journal {
		return newHandler(w, o)
	}
	return plain(w, o)
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

// OutliveReader makes the write of a line fail whose reader has gone: a journal that has been
// restarted, or the end of a pipe. Otherwise it ends a Go program, by SIGPIPE where that is
// standard error. Programs that this one starts have the signal's default action.
func OutliveReader() { signal.Notify(make(chan os.Signal, 1), unix.SIGPIPE) }

// ToJournal reports whether what is written to the file goes to systemd's journal
// ($JOURNAL_STREAM of systemd.exec(5)).
func ToJournal(f *os.File) bool {
	var st unix.Stat_t
	stream := os.Getenv("JOURNAL_STREAM")
	return stream != "" && unix.Fstat(int(f.Fd()), &st) == nil && stream == fmt.Sprintf("%d:%d", st.Dev, st.Ino)
}

// lines writes lines with a beginning.
type lines struct {
	to io.Writer

	mu   sync.Mutex
	line []byte
}

func (l *lines) write(prefix string, line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.line = append(append(l.line[:0], prefix...), line...)
	_, err := l.to.Write(l.line)
	if cap(l.line) > 64<<10 {
		l.line = nil
	}
	return len(line), err
}

// prioritized puts a priority before each line.
type prioritized struct {
	*lines
	prefix string
}

// Write implements io.Writer.
func (p prioritized) Write(line []byte) (int, error) { return p.write(p.prefix, line) }

// handler has one handler for each priority, so that none is locked while a record is made
// into text: what is logged may log, too.
type handler map[string]slog.Handler

func newHandler(w io.Writer, o Options) handler {
	h, out := handler{}, &lines{to: w}
	for _, l := range []slog.Level{slog.LevelDebug, slog.LevelInfo, slog.LevelWarn, slog.LevelError} {
		h[priority(l)] = plain(prioritized{out, priority(l)}, o)
	}
	return h
}

// Enabled implements slog.Handler.
func (h handler) Enabled(ctx context.Context, l slog.Level) bool {
	return h[priority(l)].Enabled(ctx, l)
}

// Handle implements slog.Handler.
func (h handler) Handle(ctx context.Context, r slog.Record) error {
	return h[priority(r.Level)].Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (h handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return h.with(func(one slog.Handler) slog.Handler { return one.WithAttrs(attrs) })
}

// WithGroup implements slog.Handler.
func (h handler) WithGroup(name string) slog.Handler {
	return h.with(func(one slog.Handler) slog.Handler { return one.WithGroup(name) })
}

func (h handler) with(more func(slog.Handler) slog.Handler) handler {
	out := handler{}
	for p, one := range h {
		out[p] = more(one)
	}
	return out
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
