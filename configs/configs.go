// Package configs holds the files that subpod ships with: the default
// configuration, a systemd user unit, crictl's configuration and an AppArmor
// profile. The last three are templates that are filled with the paths of the
// machine at hand.
package configs

import (
	_ "embed"
	"fmt"
	"strings"
)

// Default is the default configuration, commented, in TOML. pkg/config decodes
// it before any other file, so that it holds every default and nothing else does.
//
//go:embed subpod.toml
var Default string

//go:embed subpod.service
var unit string

//go:embed crictl.yaml
var crictl string

//go:embed apparmor.profile
var apparmor string

// SystemdUnit returns the systemd user unit for the subpod binary at the
// absolute path binary.
func SystemdUnit(binary string) (string, error) {
	if err := checkPath(binary); err != nil {
		return "", fmt.Errorf("systemd unit: %w", err)
	}
	// In an ExecStart= line, % starts a specifier, $ a variable, and quotes
	// and backslashes are C-style (systemd.service(5), "Command lines").
	quoted := strings.NewReplacer(`\`, `\\`, `"`, `\"`, `%`, `%%`, `$`, `$$`).Replace(binary)
	return strings.ReplaceAll(unit, "@SUBPOD@", `"`+quoted+`"`), nil
}

// Crictl returns crictl's configuration for the CRI socket at the absolute
// path socket.
func Crictl(socket string) (string, error) {
	if err := checkPath(socket); err != nil {
		return "", fmt.Errorf("crictl configuration: %w", err)
	}
	quoted := strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(socket)
	return strings.ReplaceAll(crictl, "@SOCKET@", quoted), nil
}

// AppArmorProfile returns an AppArmor profile that lets the subpod binary at
// the absolute path binary (and subpod-node, subpod-node-gvisor and subpod-server beside it) make user namespaces.
func AppArmorProfile(binary string) (string, error) {
	if err := checkPath(binary); err != nil {
		return "", fmt.Errorf("AppArmor profile: %w", err)
	}
	// Globbing characters are escaped by a backslash (apparmor.d(5), "Globbing").
	var quoted strings.Builder
	for _, r := range binary {
		if strings.ContainsRune(`\"?*[]{}^@`, r) {
			quoted.WriteByte('\\')
		}
		quoted.WriteRune(r)
	}
	return strings.ReplaceAll(apparmor, "@SUBPOD@", quoted.String()), nil
}

// checkPath refuses what no template can hold: relative paths, and control
// characters, which would end the line and start another.
func checkPath(path string) error {
	if !strings.HasPrefix(path, "/") {
		return fmt.Errorf("path %q is not absolute", path)
	}
	for _, r := range path {
		if r < ' ' || r == 0x7f {
			return fmt.Errorf("path %q holds a control character", path)
		}
	}
	return nil
}
