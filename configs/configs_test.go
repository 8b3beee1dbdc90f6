package configs

import (
	"strings"
	"testing"

	"sigs.k8s.io/yaml"
)

func TestTemplates(t *testing.T) {
	unit, err := SystemdUnit(`/home/a b/50%/"x"$/subpod`)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		`ExecStart="/home/a b/50%%/\"x\"$$/subpod" daemon`,
		`ExecReload="/home/a b/50%%/\"x\"$$/subpod" reload`,
		"Type=notify", "Delegate=yes", "KillMode=mixed",
	} {
		if !strings.Contains(unit, "\n"+line+"\n") {
			t.Errorf("the unit has no line %s:\n%s", line, unit)
		}
	}
	text, err := Crictl(`/run/user/1000/a"\b/subpod.sock`)
	if err != nil {
		t.Fatal(err)
	}
	var parsed map[string]any
	if err := yaml.UnmarshalStrict([]byte(text), &parsed); err != nil {
		t.Fatal(err)
	}
	if got := parsed["runtime-endpoint"]; got != `unix:///run/user/1000/a"\b/subpod.sock` {
		t.Errorf("runtime-endpoint is %v", got)
	}
	profile, err := AppArmorProfile("/opt/{a}/sub pod")
	if err != nil {
		t.Fatal(err)
	}
	if want := `profile subpod "/opt/\{a\}/sub pod{,-node,-node-gvisor,-server}" flags=(unconfined) {`; !strings.Contains(profile, want) {
		t.Errorf("the profile has no %s:\n%s", want, profile)
	}
	for name, make := range map[string]func(string) (string, error){"unit": SystemdUnit, "crictl": Crictl, "apparmor": AppArmorProfile} {
		for _, bad := range []string{"", "subpod", "/a\nExecStart=/bin/sh"} {
			if got, err := make(bad); err == nil {
				t.Errorf("%s took the path %q: %s", name, bad, got)
			}
		}
		if got, _ := make("/x"); strings.Contains(got, "@S") {
			t.Errorf("%s: a placeholder is left:\n%s", name, got)
		}
	}
}
