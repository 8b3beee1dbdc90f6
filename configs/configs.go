// Package configs holds the files that subpod ships with: the default
// configuration, a systemd user unit (subpod.service, for users to install) and an
// AppArmor profile, which is a template that is filled with the path of the program.
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

//go:embed apparmor.profile
var apparmor string

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
