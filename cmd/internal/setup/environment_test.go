package setup

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestOtherPlaces: a service looks where the commands of the shell do, and its unit is where
// systemd looks.
func TestOtherPlaces(t *testing.T) {
	a := newAccount(t, true)
	if out := a.do(); strings.Contains(out, "the service gets") {
		t.Errorf("with the same places:\n%s", out)
	}
	shell := map[string]string{"HOME": a.Home, "XDG_CONFIG_HOME": a.dir + "/cfg", "XDG_DATA_HOME": a.dir + "/my data", "SCRATCH": "/scratch", "XDG_STATE_HOME": "relative"}
	a.Getenv = func(name string) string { return shell[name] }
	a.ConfigHome, a.DataHome = shell["XDG_CONFIG_HOME"], shell["XDG_DATA_HOME"]
	a.Variables = []string{"HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "SCRATCH"}
	env := "HOME=" + a.Home + "\nXDG_DATA_HOME=$'" + a.dir + "/my data'\nSCRATCH=/tmp\n"
	if err := os.WriteFile(filepath.Join(a.dir, "manager-env"), []byte(env), 0o644); err != nil {
		t.Fatal(err)
	}
	out := a.do()
	at := filepath.Join(a.Home, ".config/systemd/user/subpod.service")
	unit, err := os.ReadFile(at)
	if want := "\nEnvironment=XDG_CONFIG_HOME=" + a.dir + "/cfg\nEnvironment=SCRATCH=/scratch\nExecStart="; err != nil || !strings.Contains(string(unit), want) {
		t.Errorf("the unit has no %q: %v\n%s", want, err, unit)
	}
	for _, want := range []string{"wrote: " + at, "the service gets: XDG_CONFIG_HOME=" + a.dir + "/cfg", "the service gets: SCRATCH=/scratch", "wrote: " + a.dir + "/cfg/subpod/crictl.yaml"} {
		if !strings.Contains(out, want) {
			t.Errorf("not said: %q:\n%s", want, out)
		}
	}
	a.undo()
	if _, err := os.Stat(at); err == nil {
		t.Error("undo has left the unit")
	}
}

// TestOwnPrograms: the service finds the programs that the shell finds.
func TestOwnPrograms(t *testing.T) {
	a := newAccount(t, true)
	for _, path := range []string{"/usr/bin/crun", "/usr/bin/conmon", "/home/ann/bin/crun", "/opt/x/bin/slirp4netns", "/opt/x/bin/pasta"} {
		file := filepath.Join(a.Root, path)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, nil, 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("usr/bin", filepath.Join(a.Root, "bin")); err != nil {
		t.Fatal(err)
	}
	a.Programs = []string{"/bin/conmon", "/home/ann/bin/crun", "/opt/x/bin/slirp4netns", "/opt/x/bin/pasta", "bin/relative"}
	out := a.do()
	unit, err := os.ReadFile(filepath.Join(a.ConfigHome, "systemd/user/subpod.service"))
	if want := "\nEnvironment=PATH=/home/ann/.local/bin:/home/ann/bin:/opt/x/bin:/usr/local/sbin:"; err != nil || !strings.Contains(string(unit), want) {
		t.Errorf("the unit has no %q: %v\n%s", want, err, unit)
	}
	if !strings.Contains(out, "the service finds programs in: /home/ann/bin, /opt/x/bin, too") {
		t.Errorf("said:\n%s", out)
	}
}

// TestOddPaths: what is printed can be pasted, and crictl reads its file.
func TestOddPaths(t *testing.T) {
	a := newAccount(t, false)
	a.ConfigHome = filepath.Join(a.dir, "home/it's\n$x")
	a.Socket = "/run/a #b: c/subpod.sock"
	if out := a.do(); !strings.Contains(out, "export CRI_CONFIG_FILE='"+a.dir+"/home/it'\\''s\n$x/subpod/crictl.yaml'\n") {
		t.Errorf("said:\n%s", out)
	}
	text, err := os.ReadFile(a.crictlFile())
	if err != nil || !strings.Contains(string(text), "CRI_CONFIG_FILE.\nruntime-endpoint: unix:///run/a%20%23b:%20c/subpod.sock\nimage-endpoint: unix") {
		t.Errorf("%v:\n%s", err, text)
	}
}
