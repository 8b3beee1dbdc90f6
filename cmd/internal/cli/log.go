package cli

import (
	"fmt"
	"log/slog"
	"os"

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

// NewLog returns a logger that writes to standard error in the configured format.
func NewLog(cfg *config.Config) (*slog.Logger, error) {
	level, err := LogLevel(cfg)
	if err != nil {
		return nil, err
	}
	opts := &slog.HandlerOptions{Level: level}
	if cfg.Daemon.LogFormat == "json" {
		return slog.New(slog.NewJSONHandler(os.Stderr, opts)), nil
	}
	return slog.New(slog.NewTextHandler(os.Stderr, opts)), nil
}
