package storage

import (
	"io"
	"log/slog"
	"sync"

	"github.com/sirupsen/logrus"
)

// forward sends what the libraries log through logrus to slog. logrus has one
// logger per process, so the first store that is opened decides.
type forward struct{ log *slog.Logger }

var forwardOnce sync.Once

func forwardLogrus(log *slog.Logger) {
	forwardOnce.Do(func() {
		logrus.SetOutput(io.Discard)
		logrus.AddHook(forward{log})
	})
}

func (forward) Levels() []logrus.Level { return logrus.AllLevels }

func (f forward) Fire(e *logrus.Entry) error {
	log := f.log.With("from", "containers")
	switch {
	case e.Level <= logrus.ErrorLevel:
		log.Error(e.Message)
	case e.Level == logrus.WarnLevel:
		log.Warn(e.Message)
	default:
		log.Debug(e.Message)
	}
	return nil
}
