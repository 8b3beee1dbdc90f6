package cli

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/subpod/subpod/pkg/config"
	"github.com/subpod/subpod/pkg/logging"
)

// LogLevel returns daemon.log_level.
func LogLevel(cfg *config.Config) (slog.Level, error) {
	l, err := logging.ParseLevel(cfg.Daemon.LogLevel)
	if err != nil {
		return 0, fmt.Errorf("daemon.log_level: %w", err)
	}
	return l, nil
}

// LogName is the name of the log, in the run directory, of a daemon that a command has
// started.
const LogName = "daemon.log"

// NewLog returns a logger that writes to standard error in the configured format, and its
// level, which may be changed. It bounds the file of LogName, and the process outlives who
// reads its standard error.
func NewLog(cfg *config.Config) (*slog.Logger, *slog.LevelVar, error) {
	l, err := LogLevel(cfg)
	if err != nil {
		return nil, nil, err
	}
	logging.OutliveReader()
	level := new(slog.LevelVar)
	level.Set(l)
	out := &boundedLog{file: os.Stderr, path: filepath.Join(cfg.Daemon.RunDir, LogName)}
	return logging.New(out, logging.Options{
		Level: level, JSON: cfg.Daemon.LogFormat == "json", Journal: logging.ToJournal(os.Stderr),
	}), level, nil
}
