// Package cli contains what the command lines of subpod's programs have in common:
// configuration flags, logging and the version.
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

// Flags are the flags of every command: the path of the configuration file, and
// values that override it.
type Flags struct {
	file string
	// values holds the value of each flag that overrides a configuration key.
	values map[string]*string
	cmd    *cobra.Command
}

// overrideFlags maps flags to configuration keys.
var overrideFlags = []struct{ name, key, usage string }{
	{"root", "daemon.data_dir", "directory for images and state"},
	{"run", "daemon.run_dir", "directory for the socket and for files that live as long as the node"},
	{"storage-driver", "storage.driver", "fuse-overlayfs, native, auto or vfs"},
	{"uplink", "node.uplink", "auto, slirp4netns, pasta, gvisor-tap-vsock, none or host"},
	{"log-level", "daemon.log_level", "debug, info, warn or error"},
}

// AddFlags adds the flags to a root command.
func AddFlags(cmd *cobra.Command) *Flags {
	f := &Flags{cmd: cmd, values: map[string]*string{}}
	p := cmd.PersistentFlags()
	p.StringVar(&f.file, "config", "", "configuration file (default: the standard locations)")
	for _, o := range overrideFlags {
		f.values[o.name] = p.String(o.name, "", o.usage)
	}
	return f
}

// File returns the configuration file that --config names; "" when none does.
func (f *Flags) File() string { return f.file }

// Load reads the configuration and expands its paths.
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

// errConfigNamed is returned by RunDir when a file is named that may set another one.
var errConfigNamed = errors.New("--config may set another run directory")

// RunDir returns the run directory that the flags and the defaults give, without a look
// at the configuration on disk. An error where --config names a file.
func (f *Flags) RunDir() (string, error) {
	if f.file != "" {
		return "", errConfigNamed
	}
	overrides, err := f.overrides()
	if err != nil {
		return "", err
	}
	cfg, err := config.Load(os.DevNull, overrides)
	if err != nil {
		return "", err
	}
	err = cfg.Resolve(os.Getenv)
	return cfg.Daemon.RunDir, err
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

// Args returns the flags as arguments for another program of subpod.
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

// setRuntimeDir sets XDG_RUNTIME_DIR if it is missing, as after su or sudo and in
// containers. It depends on the real UID, which is 0 inside the node.
func setRuntimeDir() error {
	if os.Getenv("XDG_RUNTIME_DIR") != "" {
		return nil
	}
	dir := filepath.Join("/run/user", strconv.Itoa(os.Geteuid()))
	if unix.Access(dir, unix.W_OK) != nil {
		dir = filepath.Join(os.TempDir(), "subpod-run-"+strconv.Itoa(os.Geteuid()))
		if err := privateDir(dir); err != nil {
			return fmt.Errorf("XDG_RUNTIME_DIR is not set, and %s does not exist: %w",
				filepath.Join("/run/user", strconv.Itoa(os.Geteuid())), err)
		}
	}
	return os.Setenv("XDG_RUNTIME_DIR", dir)
}

// privateDir creates a directory in a world-writable one, where others may have
// created one of the same name before.
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
