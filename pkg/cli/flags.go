// Package cli is what the command lines of subpod's programs have in common: the
// flags that say where the configuration is, the log and the version.
package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/subpod/subpod/pkg/config"
)

// Flags are the flags that every command has: where the configuration is, and
// what is different this time.
type Flags struct {
	file string
	// values holds the value of each flag that stands for a configuration key.
	values map[string]*string
	cmd    *cobra.Command
}

// overrideFlags ties flags to configuration keys.
var overrideFlags = []struct{ name, key, usage string }{
	{"root", "daemon.data_dir", "directory for images and state"},
	{"run", "daemon.run_dir", "directory for sockets and what lives as long as the node; the socket is there too"},
	{"storage-driver", "storage.driver", "fuse-overlayfs, native, auto or vfs"},
	{"uplink", "node.uplink", "slirp4netns, pasta or none"},
	{"log-level", "daemon.log_level", "debug, info, warn or error"},
}

// AddFlags adds the flags to a root command.
func AddFlags(cmd *cobra.Command) *Flags {
	f := &Flags{cmd: cmd, values: map[string]*string{}}
	p := cmd.PersistentFlags()
	p.StringVar(&f.file, "config", "", "configuration file (default: the standard places)")
	for _, o := range overrideFlags {
		f.values[o.name] = p.String(o.name, "", o.usage)
	}
	return f
}

// Load reads the configuration, with paths expanded.
func (f *Flags) Load() (*config.Config, error) {
	if err := setRuntimeDir(); err != nil {
		return nil, err
	}
	overrides, err := f.overrides()
	if err != nil {
		return nil, err
	}
	cfg, err := config.Load(f.file, overrides)
	if err != nil {
		return nil, err
	}
	return cfg, cfg.Resolve(os.Getenv)
}

func (f *Flags) overrides() (map[string]string, error) {
	out := map[string]string{}
	for _, o := range overrideFlags {
		if !f.cmd.PersistentFlags().Changed(o.name) {
			continue
		}
		v := *f.values[o.name]
		if o.name == "root" || o.name == "run" {
			abs, err := filepath.Abs(v)
			if err != nil {
				return nil, fmt.Errorf("--%s: %w", o.name, err)
			}
			v = abs
		}
		out[o.key] = v
		if o.name == "run" {
			out["daemon.socket"] = filepath.Join(v, "subpod.sock")
		}
	}
	return out, nil
}

// Args returns the flags in a form for another program of subpod's.
func (f *Flags) Args() ([]string, error) {
	overrides, err := f.overrides()
	if err != nil {
		return nil, err
	}
	var args []string
	if f.file != "" {
		abs, err := filepath.Abs(f.file)
		if err != nil {
			return nil, fmt.Errorf("--config: %w", err)
		}
		args = append(args, "--config", abs)
	}
	for _, o := range overrideFlags {
		if v, ok := overrides[o.key]; ok {
			args = append(args, "--"+o.name, v)
		}
	}
	return args, nil
}

// setRuntimeDir fills in the XDG_RUNTIME_DIR that su and sudo lose, while we
// still have our own uid: inside the node it is 0.
func setRuntimeDir() error {
	if os.Getenv("XDG_RUNTIME_DIR") != "" {
		return nil
	}
	dir := filepath.Join("/run/user", strconv.Itoa(os.Geteuid()))
	if st, err := os.Stat(dir); err != nil || !st.IsDir() {
		return nil // the configuration says what it needs it for
	}
	return os.Setenv("XDG_RUNTIME_DIR", dir)
}
