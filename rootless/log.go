package rootless

import (
	"context"
	"io"
	"log/slog"
	"os"
	"strings"

	"github.com/sirupsen/logrus"

	"github.com/subpod/subpod/pkg/logging"
)

// newLogger makes the logger of a process of the node, on stderr. The process outlives who
// reads there.
func newLogger(c Config, process string) *slog.Logger {
	logging.OutliveReader()
	o := logging.Options{Level: c.LogLevel, JSON: c.LogJSON, Journal: logging.ToJournal(os.Stderr)}
	return logging.New(os.Stderr, o, "process", process)
}

// logHook sends what rootlesskit logs through logrus to our own logger.
type logHook struct{ log *slog.Logger }

// redirectLogrus makes log the only outlet of rootlesskit's messages.
func redirectLogrus(log *slog.Logger) {
	logrus.SetOutput(io.Discard)
	logrus.SetLevel(logrus.InfoLevel)
	if log.Enabled(context.Background(), slog.LevelDebug) {
		logrus.SetLevel(logrus.DebugLevel)
	}
	logrus.StandardLogger().ReplaceHooks(logrus.LevelHooks{})
	logrus.AddHook(logHook{log})
}

// Levels implements logrus.Hook.
func (logHook) Levels() []logrus.Level { return logrus.AllLevels }

// asRoot is what rootlesskit says where it runs as root of a user namespace, which the
// parent of a node with ViewMinimal is, and who runs the daemon in a container.
const asRoot = "Running RootlessKit as the root user is unsupported."

// Fire implements logrus.Hook.
func (h logHook) Fire(e *logrus.Entry) error {
	if e.Message == asRoot {
		return nil
	}
	level := slog.LevelError
	switch e.Level {
	case logrus.WarnLevel:
		level = slog.LevelWarn
	case logrus.InfoLevel:
		level = slog.LevelInfo
	case logrus.DebugLevel, logrus.TraceLevel:
		level = slog.LevelDebug
	}
	attrs := []any{"from", "rootlesskit"}
	if err, ok := e.Data[logrus.ErrorKey]; ok {
		attrs = append(attrs, "error", err)
	}
	h.log.Log(context.Background(), level, e.Message, attrs...)
	return nil
}

// debugWriter logs each write as one line at debug level.
type debugWriter struct {
	log  *slog.Logger
	from string
}

func (w debugWriter) Write(p []byte) (int, error) {
	w.log.Debug(strings.TrimRight(string(p), "\n"), "from", w.from)
	return len(p), nil
}

// tail passes on what a program writes and keeps the end of it for an error. Its
// text may be read once the program has ended.
type tail struct {
	next io.Writer
	last []byte
}

// tailSize is enough for the last lines of a program that gives up, in bytes.
const tailSize = 1024

func (t *tail) Write(p []byte) (int, error) {
	t.last = append(t.last, p...)
	if over := len(t.last) - tailSize; over > 0 {
		t.last = t.last[over:]
	}
	return t.next.Write(p)
}

func (t *tail) String() string { return strings.TrimSpace(string(t.last)) }
