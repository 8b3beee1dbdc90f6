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

// Unit returns the systemd user unit (subpod.service) for the program at the absolute
// path binary.
func Unit(binary string) (string, error) {
	if err := checkPath(binary); err != nil {
		return "", fmt.Errorf("systemd unit: %w", err)
	}
	dir := filepath.Dir(binary)
	if strings.Contains(dir, ":") {
		return "", fmt.Errorf("systemd unit: the directory of %q cannot be in $PATH, which a colon divides", binary)
	}
	var out strings.Builder
	for i, line := range strings.Split(strings.TrimSuffix(service, "\n"), "\n") {
		key, value, _ := strings.Cut(line, "=")
		switch {
		case i > 0 && i < 5 && strings.HasPrefix(line, "#"):
			continue // how to install it
		case key == "Environment":
			list := strings.Split(strings.TrimPrefix(value, "PATH="+homeDir+":"), ":")
			if !slices.Contains(list, dir) {
				list = append([]string{dir}, list...)
			}
			line = key + "=" + quote("PATH="+strings.Join(list, ":"), false)
		case strings.HasPrefix(value, homeDir+"/subpod "):
			line = key + "=" + quote(binary, true) + strings.TrimPrefix(value, homeDir+"/subpod")
		}
		out.WriteString(line + "\n")
	}
	return out.String(), nil
}

// SocketUnit returns the systemd user unit subpod.socket, for the default socket.
func SocketUnit() string { return socket }

// quote quotes a word of a unit (systemd.service(5), "Quoting"): percent signs begin
// specifiers, and dollar signs of a command variables.
func quote(word string, command bool) string {
	word = strings.ReplaceAll(word, "%", "%%")
	if command {
		word = strings.ReplaceAll(word, "$", "$$")
	}
	if !strings.ContainsAny(word, " \"'\\;") {
		return word
	}
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(word) + `"`
}
