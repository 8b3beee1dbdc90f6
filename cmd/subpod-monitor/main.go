// Command subpod-monitor is the container monitor: see package monitor. The node's first
// process starts it; it has no command line.
package main

import (
	"log/slog"
	"os"

	"github.com/subpod/subpod/pkg/logging"
	"github.com/subpod/subpod/pkg/monitor"
)

// version is set by the build: -ldflags "-X main.version=…".
var version string

func main() {
	if len(os.Args) != 1 || os.Getenv("SUBPOD_MONITOR") == "" {
		_, _ = os.Stderr.WriteString("subpod-monitor is started by the node and does nothing by itself\n")
		os.Exit(64)
	}
	logging.OutliveReader()
	logging.Exit(monitor.Run(version, logging.New(os.Stderr, logging.Options{
		Level: slog.LevelInfo, JSON: os.Getenv("SUBPOD_LOG_JSON") == "true", Journal: logging.ToJournal(os.Stderr),
	}, "component", "monitor")), "")
}
