// Package doctor checks a host for the requirements of subpod: a list of checks,
// each with a level, one line of explanation, and the commands that fix the problem.
// It needs no daemon and changes nothing.
//
// Problems that prevent the node from being created are found by the same methods of
// rootless.Host that the start of the daemon uses.
package doctor

import (
	"fmt"
	"strings"

	"github.com/subpod/subpod/rootless"
)

// Level is the severity of a result.
type Level int

// Levels, in order of severity.
const (
	OK      Level = iota // no problem
	Info                 // worth knowing, no action needed
	Warning              // some feature will not work, or not well
	Error                // the daemon cannot start, or containers cannot run
)

var levelNames = [...]string{"ok", "info", "warning", "error"}

// String implements fmt.Stringer.
func (l Level) String() string { return levelNames[l] }

// MarshalText implements encoding.TextMarshaler.
func (l Level) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (l *Level) UnmarshalText(text []byte) error {
	for i, name := range levelNames {
		if name == string(text) {
			*l = Level(i)
			return nil
		}
	}
	return fmt.Errorf("unknown level %q", text)
}

// Result is the result of one check.
type Result struct {
	Check string `json:"check"` // name of the check
	Level Level  `json:"level"`
	What  string `json:"what"`          // one line: what was found, and its effect
	Fix   string `json:"fix,omitempty"` // commands, one per line
}

// Check checks one requirement; it may return several results.
type Check struct {
	Name string
	Run  func(h Host) []Result
}

// Checks returns all checks in the order of the output.
func Checks() []Check {
	return []Check{
		{"kernel", kernel},
		{"landlock", confinement},
		{"user namespaces", userNamespaces},
		{"/proc", freshProc},
		{"subordinate IDs", subordinateIDs},
		{"newuidmap", idMappers},
		{"/dev/net/tun", tun},
		{"/dev/fuse", fuse},
		{"overlay", overlay},
		{"programs", programs},
		{"cgroups", cgroups},
		{"session", session},
		{"linger", linger},
		{"XDG_RUNTIME_DIR", runtimeDir},
		{"run directory", runDir},
		{"data directory", dataDir},
		{"disk space", diskSpace},
		{"network", network},
		{"ports", ports},
		{"inotify", inotify},
		{"keyring", keyring},
		{"earlier run", earlierRun},
	}
}

// Run runs all checks.
func Run(h Host) []Result {
	var all []Result
	for _, c := range Checks() {
		for _, r := range c.Run(h) {
			if r.Check == "" {
				r.Check = c.Name
			}
			all = append(all, r)
		}
	}
	return all
}

// Worst returns the highest level among results.
func Worst(results []Result) Level {
	worst := OK
	for _, r := range results {
		worst = max(worst, r.Level)
	}
	return worst
}

func one(level Level, fix, format string, args ...any) []Result {
	return []Result{{Level: level, What: fmt.Sprintf(format, args...), Fix: fix}}
}

// problem converts an error of the start of the daemon to a result.
func problem(level Level, p *rootless.Problem) []Result {
	what := p.Err.Error() + ": " + p.What
	return one(level, p.Fix, "%s", strings.Join(strings.Fields(what), " "))
}
