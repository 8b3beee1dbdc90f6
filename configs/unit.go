package configs

import (
	_ "embed"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
)

//go:embed subpod.service
var service string

//go:embed subpod.socket
var socket string

// homeDir is where the unit as it is shipped expects the program.
const homeDir = "%h/.local/bin"

// servicePath begins the line of the unit that has the PATH of the service.
const servicePath = "Environment=PATH=" + homeDir + ":"

// ServicePath returns the directories in which a service finds programs, besides its own.
func ServicePath() []string {
	for line := range strings.Lines(service) {
		if list, ok := strings.CutPrefix(strings.TrimSpace(line), servicePath); ok {
			return strings.Split(list, ":")
		}
	}
	return nil
}

// Unit returns the systemd user unit (subpod.service) for the program at the absolute
// path binary, which finds programs in dirs before those of ServicePath, and has further
// variables in its environment (NAME=VALUE).
func Unit(binary string, dirs, env []string) (string, error) {
	if err := checkPath(binary); err != nil {
		return "", fmt.Errorf("systemd unit: %w", err)
	}
	dir := filepath.Dir(binary)
	if strings.Contains(dir, ":") {
		return "", fmt.Errorf("systemd unit: the directory of %q cannot be in $PATH, which a colon divides", binary)
	}
	for _, text := range slices.Concat(dirs, env) {
		if err := checkLine(text); err != nil {
			return "", fmt.Errorf("systemd unit: %w", err)
		}
	}
	var out strings.Builder
	for i, line := range strings.Split(strings.TrimSuffix(service, "\n"), "\n") {
		key, value, _ := strings.Cut(line, "=")
		switch {
		case i > 0 && i < 5 && strings.HasPrefix(line, "#"):
			continue // how to install it
		case key == "Environment":
			list := slices.Concat(dirs, ServicePath())
			if !slices.Contains(list, dir) {
				list = append([]string{dir}, list...)
			}
			line = key + "=" + UnitWord("PATH="+strings.Join(list, ":"))
			for _, assignment := range env {
				line += "\n" + key + "=" + UnitWord(assignment)
			}
		case strings.HasPrefix(value, homeDir+"/subpod "):
			line = key + "=" + UnitWord(binary) + strings.TrimPrefix(value, homeDir+"/subpod")
		}
		out.WriteString(line + "\n")
	}
	return out.String(), nil
}

// SocketUnit returns the systemd user unit subpod.socket, for the default socket.
func SocketUnit() string { return socket }

// UnitWord returns s as one word of a unit (systemd.service(5), "Quoting"), without specifiers,
// which percent signs begin. It is for assignments of variables and for a command's program, where a
// dollar sign is one: only in a command's arguments it begins a variable.
func UnitWord(s string) string {
	s = strings.ReplaceAll(s, "%", "%%")
	if !strings.ContainsAny(s, " \t\n\"'\\;") {
		return s
	}
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`).Replace(s) + `"`
}
