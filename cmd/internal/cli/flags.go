// Package cli is what the command lines of subpod's programs have in common: the
// flags that say where the configuration is, the log and the version.
package cli

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

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
	{"uplink", "node.uplink", "auto, slirp4netns, pasta, none or host"},
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

// setRuntimeDir fills in the XDG_RUNTIME_DIR that su and sudo lose, and that
// containers never had, while we still have our own uid: inside the node it is 0.
func setRuntimeDir() error {
	if os.Getenv("XDG_RUNTIME_DIR") != "" {
		return nil
	}
	dir := filepath.Join("/run/user", strconv.Itoa(os.Geteuid()))
	if unix.Access(dir, unix.W_OK) != nil {
		dir = filepath.Join(os.TempDir(), "subpod-run-"+strconv.Itoa(os.Geteuid()))
		if err := privateDir(dir); err != nil {
			return fmt.Errorf("XDG_RUNTIME_DIR is not set, and there is no %s either: %w",
				filepath.Join("/run/user", strconv.Itoa(os.Geteuid())), err)
		}
	}
	return os.Setenv("XDG_RUNTIME_DIR", dir)
}

// privateDir makes a directory in a place where others may have made one of that
// name before.
func privateDir(dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return fmt.Errorf("stat %s: %w", dir, err)
	}
	if st.Mode != unix.S_IFDIR|0o700 || int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("%s is not a directory of uid %d with mode 0700", dir, os.Geteuid())
	}
	return nil
}
