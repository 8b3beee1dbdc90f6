// Package doctor looks at a host and says what subpod will miss on it: a list of
// checks, each with a level, one line of why, and the commands that help. It needs
// no daemon and changes nothing.
//
// What keeps a node from being made is found by the same methods of rootless.Host
// that the daemon's own start uses.
package doctor

import (
	"fmt"
	"strings"

	"github.com/subpod/subpod/rootless"
)

// Level says how bad a finding is.
type Level int

// Levels, best first.
const (
	OK      Level = iota // as it should be
	Info                 // worth knowing, nothing to do
	Warning              // something will not work, or work badly
	Error                // the daemon will not start, or no container will run
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

// Result is one finding.
type Result struct {
	Check string `json:"check"` // name of the check
	Level Level  `json:"level"`
	What  string `json:"what"`          // one line: what was found, and why it matters
	Fix   string `json:"fix,omitempty"` // commands, one a line
}

// Check looks at one thing; it may find several.
type Check struct {
	Name string
	Run  func(h Host) []Result
}

// Checks returns all checks in the order in which they are shown.
func Checks() []Check {
	return []Check{
		{"kernel", kernel},
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
		{"data directory", dataDir},
		{"disk space", diskSpace},
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

// problem turns what the daemon's start would say into a result.
func problem(level Level, p *rootless.Problem) []Result {
	what := p.Err.Error() + ": " + p.What
	return one(level, p.Fix, "%s", strings.Join(strings.Fields(what), " "))
}
