// Package configs holds the files that subpod ships with: the default
// configuration, systemd user units (subpod.service and subpod.socket), an AppArmor
// profile, and examples for the administrator. Unit and profile are templates that are
// filled with the path of the program.
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

// Delegate is an example of a drop-in of user@.service that delegates all cgroup
// controllers, for the machine's administrator.
//
//go:embed delegate.conf
var Delegate string

// Sysctl is an example for sysctl.d(5): the kernel's limits that many containers meet,
// all of them commented out.
//
//go:embed sysctl.conf
var Sysctl string

// Lima is a template of a virtual machine with subpod, for Lima (macOS, mostly).
//
//go:embed lima.yaml
var Lima string

// AppArmorProfile returns an AppArmor profile that lets the subpod binary at
// the absolute path binary (and and the programs beside it that it starts) make user namespaces.
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
	if err := checkLine(path); err != nil {
		return fmt.Errorf("path %w", err)
	}
	return nil
}

func checkLine(text string) error {
	for _, r := range text {
		if r < ' ' || r == 0x7f {
			return fmt.Errorf("%q holds a control character", text)
		}
	}
	return nil
}
