package setup

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/subpod/subpod/configs"
	"github.com/subpod/subpod/pkg/config"
)

// manager is what the user's systemd works with, whatever a shell has set.
type manager struct {
	env   map[string]string
	units string // the directories in which it looks for units, between spaces
}

func (s Setup) manager(ctx context.Context) (manager, error) {
	m := manager{env: map[string]string{"HOME": s.Home}}
	text, err := s.systemctl(ctx, "show-environment")
	if err != nil {
		return m, err
	}
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		m.env[name] = unquote(value)
	}
	paths, err := s.systemctl(ctx, "show", "--property=UnitPath")
	m.units = " " + strings.TrimPrefix(paths, "UnitPath=") + " "
	return m, err
}

// Units returns the directory for the user's units, and what is to be in their environment
// (NAME=VALUE) so that they look where the commands of the shell do.
func (s Setup) Units(ctx context.Context) (dir string, env []string, err error) {
	m := manager{env: map[string]string{"HOME": s.Home}}
	if s.hasSystemd() {
		if m, err = s.manager(ctx); err != nil {
			return "", nil, err
		}
	}
	return m.unitDir(s.ConfigHome, s.Home), m.assignments(s.Variables, s.Getenv), nil
}

// unquote reads a value as "systemctl show-environment" prints it. One with an escape that
// it does not know only differs from what the shell has.
func unquote(value string) string {
	text, quoted := strings.CutPrefix(value, "$'")
	if text, closed := strings.CutSuffix(text, "'"); quoted && closed {
		return strings.NewReplacer(`\\`, `\`, `\'`, `'`).Replace(text)
	}
	return value
}

// unitDir returns the directory for the units of a user with that home: below the shell's
// $XDG_CONFIG_HOME only where systemd looks there.
func (m manager) unitDir(configHome, home string) string {
	const below = "systemd/user"
	own := filepath.Join(configHome, below)
	dirs := []string{own, filepath.Join(place(m.lookup, "XDG_CONFIG_HOME"), below), filepath.Join(home, ".config", below)}
	if i := slices.IndexFunc(dirs, func(dir string) bool { return strings.Contains(m.units, " "+dir+" ") }); i >= 0 {
		return dirs[i]
	}
	return own
}

// assignments returns what the service needs to look where commands do: the variables that
// the shell has another value of than systemd.
func (m manager) assignments(names []string, shell func(string) string) []string {
	var list []string
	for _, name := range names {
		if want := place(shell, name); place(m.lookup, name) != want {
			m.env[name] = want
			list = append(list, name+"="+want)
		}
	}
	return list
}

// programDirs lists the directories of the programs that the service of the program binary
// would not find otherwise, or would find another one instead of.
func programDirs(root, binary string, programs []string) []string {
	var dirs []string
	for _, path := range programs {
		dir, name := filepath.Split(path)
		searched := slices.Concat([]string{filepath.Dir(binary)}, dirs, configs.ServicePath())
		for _, d := range searched {
			if there, err := os.Stat(filepath.Join(root, d, name)); err == nil {
				if wanted, err := os.Stat(filepath.Join(root, path)); err == nil && os.SameFile(there, wanted) {
					dir = ""
				}
				break
			}
		}
		if filepath.IsAbs(dir) {
			dirs = append(dirs, filepath.Clean(dir))
		}
	}
	return dirs
}

func (m manager) lookup(name string) string { return m.env[name] }

// place returns the value of a variable, or its default; "" without one.
func place(env func(string) string, name string) string {
	value, _ := config.Variable(name, env)
	return value
}

// shellWord quotes s for a shell, where it has to be.
func shellWord(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("/._-+:@%=,", r)
	}
	if s != "" && strings.IndexFunc(s, func(r rune) bool { return !plain(r) }) < 0 {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
