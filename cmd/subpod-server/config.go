package main

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/subpod/subpod/pkg/config"
	"github.com/subpod/subpod/rootless"
)

// saved is what the server keeps in the node's directory for its successors, so that
// a configuration that cannot be used costs neither the node nor its API.
type saved struct {
	file string // the configuration that served last; "": under a supervisor that knows no such file
	use  bool   // the server before this one ended before it served
}

// failureFile holds why the server before this one did not come to serve.
func (s saved) failureFile() string { return filepath.Join(filepath.Dir(s.file), "start-failure") }

// maxFailure is how much of an error is kept, in bytes.
const maxFailure = 2000

// choose returns the configuration to serve with: the one that load reads from the
// disk. The one that served last takes its place, and degraded says why, when load
// fails, or when the server before this one ended before it served and the two differ.
// An error is load's: there is no other configuration.
func (s saved) choose(load func() (*config.Config, error)) (cfg *config.Config, degraded string, err error) {
	cfg, err = load()
	if s.file == "" || err == nil && !s.use {
		return cfg, "", err
	}
	last, lastErr := config.LoadSaved(s.file)
	if lastErr != nil {
		if err != nil && s.use {
			err = fmt.Errorf("%w (and there is no configuration that served before: %w)", err, lastErr)
		}
		return cfg, "", err
	}
	why := ""
	switch {
	case err != nil:
		why = err.Error()
	case last.Equal(cfg):
		return cfg, "", nil // whatever it was, it was not the configuration
	default:
		why = "the server could not start with it: " + s.failure()
	}
	return last, "the server uses the configuration that served last, not the one on disk: " + why +
		" (mend that, then: subpod reload)", nil
}

// failure returns what keepFailure kept.
func (s saved) failure() string {
	text, err := os.ReadFile(s.failureFile())
	if err != nil || len(text) == 0 {
		return "it ended without an error message (see the log)"
	}
	return string(text)
}

// keepFailure keeps the error of a server that does not come to serve with the
// configuration on disk; nil removes it. Best effort: the error is in the log, too.
func (s saved) keepFailure(err error) {
	if s.file == "" {
		return
	}
	if err == nil {
		_ = os.Remove(s.failureFile())
		return
	}
	text := strings.ToValidUTF8(err.Error()[:min(len(err.Error()), maxFailure)], "")
	_ = os.WriteFile(s.failureFile(), []byte(text), 0o600)
}

// served is called once the server serves. What cannot be written is logged: the
// server serves without it.
func (s saved) served(node *rootless.Node, cfg *config.Config, degraded string) {
	if err := node.SetDegraded(degraded); err != nil {
		slog.Warn("\"subpod doctor\" cannot tell which configuration the server uses", "error", err)
	}
	if s.file == "" || degraded != "" {
		return
	}
	s.keepFailure(nil)
	if err := config.Save(s.file, cfg); err != nil {
		slog.Warn("the configuration cannot be kept for later servers", "error", err)
	}
}

// checkNode refuses settings that a running node cannot change: its pods are in these
// directories. An error wraps config.ErrInvalid.
func checkNode(cfg *config.Config, runDir, dataDir string) error {
	for _, d := range []struct{ key, have, want string }{
		{"daemon.run_dir", runDir, cfg.Daemon.RunDir},
		{"daemon.data_dir", dataDir, cfg.Daemon.DataDir},
	} {
		if d.have != "" && d.have != d.want {
			return fmt.Errorf("%w: %s is %s now, but the node runs with %s: a restart of the daemon changes it, a reload cannot",
				config.ErrInvalid, d.key, d.want, d.have)
		}
	}
	return nil
}

// nodeDirs returns the directories that the node of this server was made for; "" for
// what is not known under a supervisor of an earlier version.
func (s saved) nodeDirs() (runDir, dataDir string) {
	if s.file == "" {
		return "", ""
	}
	runDir = filepath.Dir(filepath.Dir(s.file))
	if node, err := rootless.Load(runDir); err == nil {
		dataDir = node.DataDir
	}
	return runDir, dataDir
}
