package cli

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/subpod/subpod/pkg/config"
)

// LogLevel returns daemon.log_level.
func LogLevel(cfg *config.Config) (slog.Level, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(cfg.Daemon.LogLevel)); err != nil {
		return 0, fmt.Errorf("daemon.log_level: %w", err)
	}
	return l, nil
}

// LogName is the name of the log, in the run directory, of a daemon that a command has
// started.
const LogName = "daemon.log"

// NewLog returns a logger that writes to standard error in the configured format. It
// bounds the file of LogName.
func NewLog(cfg *config.Config) (*slog.Logger, error) {
	level, err := LogLevel(cfg)
	if err != nil {
		return nil, err
	}
	opts := &slog.HandlerOptions{Level: level}
	out := &boundedLog{file: os.Stderr, path: filepath.Join(cfg.Daemon.RunDir, LogName)}
	if cfg.Daemon.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(out, opts)), nil
	}
	return slog.New(slog.NewTextHandler(out, opts)), nil
}
