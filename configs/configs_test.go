package configs

import (
	"os"
	"strings"
	"testing"
)

// TestUnit: the unit needs no editing, and has what the daemon relies on.
func TestUnit(t *testing.T) {
	unit, err := os.ReadFile("subpod.service")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		"ExecStart=%h/.local/bin/subpod daemon",
		"ExecReload=%h/.local/bin/subpod reload",
		"Type=notify", "Delegate=yes", "KillMode=mixed",
	} {
		if !strings.Contains(string(unit), "\n"+line+"\n") {
			t.Errorf("the unit has no line %s:\n%s", line, unit)
		}
	}
}

func TestAppArmorProfile(t *testing.T) {
	profile, err := AppArmorProfile("/opt/{a}/sub pod")
	if err != nil {
		t.Fatal(err)
	}
	if want := `profile subpod "/opt/\{a\}/sub pod{,-node,-node-gvisor,-server}" flags=(unconfined) {`; !strings.Contains(profile, want) {
		t.Errorf("the profile has no %s:\n%s", want, profile)
	}
	for _, bad := range []string{"", "subpod", "/a\nExecStart=/bin/sh"} {
		if got, err := AppArmorProfile(bad); err == nil {
			t.Errorf("the path %q was accepted: %s", bad, got)
		}
	}
	if got, _ := AppArmorProfile("/x"); strings.Contains(got, "@S") {
		t.Errorf("a placeholder is left:\n%s", got)
	}
}
