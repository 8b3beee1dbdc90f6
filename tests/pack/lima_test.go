package main

import (
	"bytes"
	"os"
	"os/exec"
	"path"
	"regexp"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// lima is what the template uses of Lima's configuration: a key that is not here is a
// mistake in the one or the other.
type lima struct {
	MinimumLimaVersion string `yaml:"minimumLimaVersion"`
	Images             []struct{ Location, Arch string }
	Mounts             []struct{ Location string }
	Containerd         struct{ System, User *bool }
	Param              map[string]string
	Provision          []struct{ Mode, Script string }
	Probes             []struct{ Description, Script, Hint string }
	PortForwards       []struct {
		GuestSocket string `yaml:"guestSocket"`
		HostSocket  string `yaml:"hostSocket"`
	} `yaml:"portForwards"`
	Message string
}

// TestLima: the template of a virtual machine is one, its scripts are scripts, and it takes
// the archive by the name that "make release" gives it. tests/vm runs the scripts.
func TestLima(t *testing.T) {
	text, err := os.ReadFile("../../configs/lima.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var l lima
	d := yaml.NewDecoder(bytes.NewReader(text))
	d.KnownFields(true)
	if err := d.Decode(&l); err != nil {
		t.Fatal(err)
	}
	arches := map[string]string{"x86_64": "amd64", "aarch64": "arm64"}
	for _, image := range l.Images {
		if arches[image.Arch] == "" || !strings.Contains(image.Location, "-"+arches[image.Arch]+".") {
			t.Errorf("image %s is not of %s", image.Location, image.Arch)
		}
		delete(arches, image.Arch)
	}
	if len(arches) > 0 {
		t.Errorf("no image for %v", arches)
	}
	if l.Containerd.System == nil || *l.Containerd.System || l.Containerd.User == nil || *l.Containerd.User {
		t.Error("Lima would install containerd")
	}
	if len(l.Provision) != 2 || len(l.Probes) != 1 {
		t.Fatalf("%d steps, %d probes", len(l.Provision), len(l.Probes))
	}
	system := l.Provision[0].Script
	for _, script := range []string{system, l.Provision[1].Script, l.Probes[0].Script} {
		cmd := exec.Command("sh", "-n")
		cmd.Stdin = strings.NewReader(script)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v: %s\n%s", err, out, script)
		}
	}
	// Parameters that scripts use are there, and those that are there are used.
	used := map[string]bool{}
	for _, m := range regexp.MustCompile(`PARAM_([A-Za-z]+)`).FindAllStringSubmatch(string(text), -1) {
		used[m[1]] = true
		if _, ok := l.Param[m[1]]; !ok {
			t.Errorf("no parameter %s", m[1])
		}
	}
	for name := range l.Param {
		if !used[name] {
			t.Errorf("parameter %s is not used", name)
		}
	}
	glob := regexp.MustCompile(`PARAM_archives"/(\S+)"\$arch"(\S+)`).FindStringSubmatch(system)
	if glob == nil {
		t.Fatal("the script looks for no archive")
	}
	for _, v := range []string{"0.2.0", "0.2.0+1f3c9aa", "0.2.0-dev+1f3c9aa-dirty"} {
		for _, arch := range []string{"amd64", "arm64"} {
			name := job{version: version{full: v}, arch: arch}.name() + ".tar.gz"
			if ok, err := path.Match(glob[1]+arch+glob[2], name); !ok || err != nil {
				t.Errorf("%s%s%s does not take %s", glob[1], arch, glob[2], name)
			}
		}
	}
	// What it uses of the archive is in each (look, installed).
	for _, m := range regexp.MustCompile(`/usr/local/(share/doc\S+)`).FindAllStringSubmatch(system, -1) {
		found := false
		for _, name := range installed {
			found = found || name == m[1]
		}
		if !found {
			t.Errorf("%s is not looked for in archives", m[1])
		}
	}
}
