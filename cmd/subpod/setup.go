package main

import (
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/subpod/subpod/cmd/internal/cli"
	"github.com/subpod/subpod/cmd/internal/doctor"
	"github.com/subpod/subpod/cmd/internal/setup"
	"github.com/subpod/subpod/pkg/config"
)

func newSetup(flags *cli.Flags) *cobra.Command {
	var undo, dryRun, onDemand bool
	cmd := &cobra.Command{
		Use:   "setup",
		Short: "Make your account ready: a service, crictl, shell completion",
		Long: `Checks this host as "subpod doctor" does, then writes the systemd user units, a
configuration for crictl and shell completion with the paths of this installation,
enables linger where you may, and starts the daemon. Each step is printed.

It can be repeated, after an update or a change. Files that you have changed, and those
that were there before, are left alone. --undo takes back what setup has done, and
nothing else: images, containers and your configuration stay. Without systemd there is
no service, the rest is the same.`,
		Example: "  subpod setup --dry-run\n  subpod setup\n  subpod setup --undo",
		Args:    exactly(0),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if args, err := flags.Args(); err != nil || len(args) > 0 {
				return usagef("setup takes no %s: the service reads the configuration in its standard places (subpod daemon --help)", strings.Join(args, " "))
			}
			cfg, err := flags.Load()
			switch {
			case err != nil && !undo:
				return err
			case err != nil:
				cfg = config.Default() // what was done is in the record
			}
			s, err := newSetupOf(cmd, cfg)
			if err != nil {
				return err
			}
			s.DryRun, s.OnDemand = dryRun, onDemand
			if undo {
				return s.Undo(cmd.Context())
			}
			if s.Programs, err = checkHost(cmd, cfg); err != nil {
				return err
			}
			return s.Do(cmd.Context())
		},
	}
	cmd.Flags().BoolVar(&undo, "undo", false, "take back what setup has done")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "print what would be done, and change nothing")
	cmd.Flags().BoolVar(&onDemand, "on-demand", false, "start the daemon at the first client of the CRI socket (socket activation), not at login")
	return cmd
}

// checkHost prints what is missing on this host, and returns the paths of the programs that
// the daemon runs; an error where it cannot start.
func checkHost(cmd *cobra.Command, cfg *config.Config) (programs []string, err error) {
	server, err := serverPath()
	if err != nil {
		return nil, err
	}
	host := doctor.ThisHost(cfg, os.Getenv, server)
	results := checksOf(cfg, host)
	var problems []doctor.Result
	for _, r := range results {
		// Linger, and a cgroup of its own for the daemon, are what setup is about to get.
		if r.Level >= doctor.Warning && r.Check != "linger" && !strings.Contains(r.Fix, "systemctl --user enable --now subpod") {
			problems = append(problems, r)
		}
	}
	if len(problems) > 0 {
		if err := doctorText(cmd.OutOrStdout(), problems, true); err != nil {
			return nil, err
		}
	}
	if doctor.Worst(results) == doctor.Error {
		return nil, fmt.Errorf("the daemon cannot start here, so nothing was changed: mend the errors above, then run setup again")
	}
	return host.Programs(), nil
}

func newSetupOf(cmd *cobra.Command, cfg *config.Config) (setup.Setup, error) {
	if os.Geteuid() == 0 {
		return setup.Setup{}, fmt.Errorf("setup is for an ordinary user's account: subpod is rootless")
	}
	binary, err := calledPath()
	if err != nil {
		return setup.Setup{}, err
	}
	completions, err := completionFiles(cmd.Root())
	if err != nil {
		return setup.Setup{}, err
	}
	s, err := accountSetup()
	s.Binary, s.Socket, s.Completions, s.Out = binary, cfg.Daemon.Socket, completions, cmd.OutOrStdout()
	return s, err
}

// accountSetup is what the account and its shell's environment say.
func accountSetup() (setup.Setup, error) {
	me, err := user.Current()
	if err != nil {
		return setup.Setup{}, fmt.Errorf("find out who you are: %w", err)
	}
	var dirs []string
	for _, name := range []string{"XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME"} {
		dir, err := config.Variable(name, os.Getenv)
		if err != nil {
			return setup.Setup{}, fmt.Errorf("find your home directory: %w", err)
		}
		dirs = append(dirs, dir)
	}
	return setup.Setup{
		User: me.Username, Home: me.HomeDir, Getenv: os.Getenv, Variables: configVariables(), RuntimeDir: os.Getenv("XDG_RUNTIME_DIR"),
		ConfigHome: dirs[0], DataHome: dirs[1], StateHome: dirs[2],
	}, nil
}

// configVariables lists the variables by which configuration is found, and those in its paths.
// XDG_RUNTIME_DIR is not among them: by that systemd is found.
func configVariables() []string {
	names := []string{"HOME", "XDG_CONFIG_HOME"}
	if cfg, err := config.Load("", nil); err == nil {
		_ = cfg.Resolve(func(name string) string { // resolved before, without an error
			if name != "XDG_RUNTIME_DIR" && !slices.Contains(names, name) {
				names = append(names, name)
			}
			return os.Getenv(name)
		})
	}
	return names
}

// calledPath returns the path by which this program was called: a link stays one, so that
// a unit follows an update that replaces it. A caller may have set another name.
func calledPath() (string, error) {
	exe, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find this program: %w", err)
	}
	if called, err := exec.LookPath(os.Args[0]); err == nil {
		if abs, err := filepath.Abs(called); err == nil && sameFile(abs, exe) {
			return abs, nil
		}
	}
	return exe, nil
}

func sameFile(a, b string) bool {
	first, err := os.Stat(a)
	if err != nil {
		return false
	}
	second, err := os.Stat(b)
	return err == nil && os.SameFile(first, second)
}
