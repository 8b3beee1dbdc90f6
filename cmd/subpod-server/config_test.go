package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/subpod/subpod/pkg/config"
	"github.com/subpod/subpod/rootless"
)

// nodeWithSaved makes a node's directory in which a configuration has served.
func nodeWithSaved(t *testing.T, change func(*config.Config)) (saved, *rootless.Node) {
	t.Helper()
	runDir := t.TempDir()
	s := saved{file: filepath.Join(runDir, "node", "served-config.json")}
	if err := os.Mkdir(filepath.Dir(s.file), 0o700); err != nil {
		t.Fatal(err)
	}
	node := &rootless.Node{RunDir: runDir}
	if change != nil {
		cfg := config.Default()
		change(cfg)
		s.served(node, cfg, "")
	}
	return s, node
}

func tenSeconds(c *config.Config) { c.Images.PullTimeout.Duration = 10 * time.Second }

func TestChoose(t *testing.T) {
	invalid := &config.Error{Problems: []config.Problem{{File: "subpod.toml", Line: 3, Text: "no good"}}}
	for _, c := range []struct {
		name    string
		saved   func(*config.Config) // nil: nothing has served
		use     bool
		failure error // of the server before
		disk    func(*config.Config)
		diskErr error

		old      bool     // the configuration that served last is chosen
		degraded []string // what the reason says
		err      error
	}{
		{name: "first start", disk: tenSeconds},
		{name: "first start, invalid", diskErr: invalid, err: invalid},
		{name: "first start, missing file", diskErr: fs.ErrNotExist, err: fs.ErrNotExist},
		{name: "a new configuration", saved: tenSeconds},
		{name: "invalid", saved: tenSeconds, diskErr: invalid, old: true, degraded: []string{"subpod.toml:3", "no good", "subpod reload"}},
		{name: "missing file", saved: tenSeconds, diskErr: fs.ErrNotExist, old: true, degraded: []string{fs.ErrNotExist.Error()}},
		{name: "unusable", saved: tenSeconds, use: true, failure: errors.New("no such port"), old: true, degraded: []string{"no such port"}},
		{name: "crashes", saved: tenSeconds, use: true, old: true, degraded: []string{"without an error message"}},
		{name: "the same one fails", saved: tenSeconds, use: true, disk: tenSeconds, failure: errors.New("disk full")},
		{name: "fails before any has served", use: true, disk: tenSeconds},
		{name: "invalid before any has served", use: true, diskErr: invalid, err: invalid},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, _ := nodeWithSaved(t, c.saved)
			s.use = c.use
			s.keepFailure(c.failure)
			disk := config.Default()
			if c.disk != nil {
				c.disk(disk)
			}
			cfg, degraded, err := s.choose(func() (*config.Config, error) {
				if c.diskErr != nil {
					return nil, c.diskErr
				}
				return disk, nil
			})
			if !errors.Is(err, c.err) {
				t.Fatalf("error %v, want %v", err, c.err)
			}
			if err != nil {
				return
			}
			if old := cfg != disk; old != c.old {
				t.Errorf("the configuration that served last is chosen: %v, want %v", old, c.old)
			}
			if c.old && cfg.Images.PullTimeout.Duration != 10*time.Second {
				t.Errorf("pull_timeout is %v", cfg.Images.PullTimeout)
			}
			if (degraded != "") != c.old {
				t.Errorf("degraded: %q", degraded)
			}
			for _, w := range c.degraded {
				if !strings.Contains(degraded, w) {
					t.Errorf("%q does not say %q", degraded, w)
				}
			}
		})
	}
}

// A supervisor of an earlier version knows no saved configuration, and would end the
// node for the exit status of a bad one.
func TestOldSupervisor(t *testing.T) {
	var s saved
	if _, _, err := s.choose(func() (*config.Config, error) { return nil, config.ErrInvalid }); !errors.Is(err, config.ErrInvalid) {
		t.Errorf("%v, want ErrInvalid", err)
	}
	if runDir, dataDir := s.nodeDirs(); runDir != "" || dataDir != "" {
		t.Errorf("the node's directories are %q, %q", runDir, dataDir)
	}
	s.keepFailure(errors.New("nowhere to write"))
	for _, c := range []struct {
		err  error
		code int
	}{
		{configError{saved{}, config.ErrInvalid}, 1},
		{configError{saved{file: "/x"}, config.ErrInvalid}, rootless.ExitConfig},
		{config.ErrInvalid, 1},
	} {
		if got := exitCode(c.err); got != c.code {
			t.Errorf("exit code %d for %v, want %d", got, c.err, c.code)
		}
	}
}

// A degraded server leaves what served last for the next one, and says that it is
// degraded; a server with the configuration on disk ends that.
func TestServed(t *testing.T) {
	s, node := nodeWithSaved(t, tenSeconds)
	other := config.Default()
	s.served(node, other, "a reason")
	if got := node.Degraded(); got != "a reason" {
		t.Errorf("degraded: %q", got)
	}
	if last, err := config.LoadSaved(s.file); err != nil || last.Images.PullTimeout.Duration != 10*time.Second {
		t.Errorf("saved: %+v, %v", last, err)
	}
	s.keepFailure(errors.New(strings.Repeat("é", maxFailure)))
	if text := s.failure(); len(text) > maxFailure || !strings.HasPrefix(text, "éé") {
		t.Errorf("%d bytes of an error are kept", len(text))
	}
	s.served(node, other, "")
	if got := node.Degraded(); got != "" {
		t.Errorf("degraded: %q", got)
	}
	if last, err := config.LoadSaved(s.file); err != nil || !last.Equal(other) {
		t.Errorf("saved: %+v, %v", last, err)
	}
	if _, err := os.Stat(s.failureFile()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the failure of a server before: %v", err)
	}
}

func TestCheckNode(t *testing.T) {
	cfg := config.Default()
	cfg.Daemon.RunDir, cfg.Daemon.DataDir = "/run/a", "/data/a"
	for _, c := range []struct{ runDir, dataDir, says string }{
		{"/run/a", "/data/a", ""},
		{"", "", ""},
		{"/run/b", "/data/a", "daemon.run_dir"},
		{"/run/a", "/data/b", "daemon.data_dir"},
	} {
		err := checkNode(cfg, c.runDir, c.dataDir)
		if (err == nil) != (c.says == "") || err != nil && (!errors.Is(err, config.ErrInvalid) || !strings.Contains(err.Error(), c.says)) {
			t.Errorf("a node of %q and %q: %v, want %q", c.runDir, c.dataDir, err, c.says)
		}
	}
}
