package rootless

import (
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// everything is the entry of Config.HostPaths for all of the host that is neither secret
// nor personal.
const everything = "/"

// hostList is what the broker gives to whoever in the node asks.
type hostList struct {
	named  []string // entries of Config.HostPaths but everything, links followed
	all    bool     // everything is one
	secret []string // what is never given, nor what is around it
	home   string
}

func newHostList(c Config, log *slog.Logger) hostList {
	l := hostList{secret: secretPaths(c), home: resolved(os.Getenv("HOME"))}
	for _, path := range c.HostPaths {
		real, err := filepath.EvalSymlinks(path)
		switch {
		case err != nil:
			log.Warn("a path of node.host_paths cannot be used", "path", path, "error", err)
		case real == everything:
			l.all = true
		default:
			l.named = append(l.named, real)
		}
	}
	return l
}

// secretPaths are what no list gives: the daemon's own directories, configuration and
// credentials, and the user's sockets and keys.
func secretPaths(c Config) []string {
	home := os.Getenv("HOME")
	paths := slices.Concat([]string{c.RunDir, c.DataDir, "/proc", os.Getenv("XDG_RUNTIME_DIR")}, c.Shown, c.Writable)
	for _, name := range []string{".ssh", ".gnupg", ".docker", ".config/containers", ".config/subpod", ".local/share/keyrings", ".kube", ".aws"} {
		paths = append(paths, filepath.Join(home, name))
	}
	if agent := os.Getenv("SSH_AUTH_SOCK"); agent != "" {
		paths = append(paths, filepath.Dir(agent))
	}
	var out []string
	for _, path := range paths {
		if filepath.IsAbs(path) {
			out = append(out, resolved(path))
		}
	}
	return out
}

// resolved follows the links of a path as far as it is there.
func resolved(path string) string {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		return real
	}
	return filepath.Clean(path)
}

// allows reports whether a path without links may be given: it is there, is no socket, and
// the list names it.
func (l hostList) allows(real string) bool {
	if !l.names(real) {
		return false
	}
	st, err := os.Lstat(real)
	return err == nil && st.Mode()&fs.ModeSocket == 0
}

// names reports whether a path without links, there or not, lies in the list, and neither
// in nor around what is secret; nor, where no entry but everything has it, is personal.
func (l hostList) names(real string) bool {
	if slices.ContainsFunc(l.secret, func(s string) bool { return overlap(real, s) }) {
		return false
	}
	return slices.ContainsFunc(l.named, func(dir string) bool { return within(real, dir) }) || l.all && !l.isPersonal(real)
}

func overlap(a, b string) bool { return within(a, b) || within(b, a) }

// Names in /tmp, beside hidden ones, by which programs of the user's are controlled.
var controlled = []string{"tmux-", "ssh-", "dbus-", "emacs", "screen", "uscreens", "vscode-", "systemd-private-", "pulse-"}

// isPersonal reports whether a path is, holds or lies in what belongs to the user's
// session and programs: hidden files of the home, which are configuration, keys and what
// shells start with, and programs there; terminals, shared memory, and the sockets of
// others in /tmp.
func (l hostList) isPersonal(real string) bool {
	if overlap(real, "/dev/pts") || overlap(real, "/dev/shm") || within("/tmp", real) || filepath.IsAbs(l.home) && within(l.home, real) {
		return true
	}
	if first, ok := firstBelow(l.home, real); ok && (strings.HasPrefix(first, ".") || first == "bin") {
		return true
	}
	first, ok := firstBelow("/tmp", real)
	return ok && (strings.HasPrefix(first, ".") || slices.ContainsFunc(controlled, func(p string) bool { return strings.HasPrefix(first, p) }))
}

// firstBelow returns the name in dir that a path below dir goes through.
func firstBelow(dir, path string) (string, bool) {
	rel, ok := strings.CutPrefix(path, strings.TrimSuffix(dir, "/")+"/")
	if !ok || dir == "" {
		return "", false
	}
	first, _, _ := strings.Cut(rel, "/")
	return first, true
}
