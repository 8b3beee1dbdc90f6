package configs

import (
	"strings"
	"testing"
)

// TestUnitFor: the unit has the path of the program, quoted for systemd, and is otherwise
// the one that is shipped.
func TestUnitFor(t *testing.T) {
	for binary, want := range map[string][]string{
		"/usr/bin/subpod":             {"ExecStart=/usr/bin/subpod daemon", "ExecReload=/usr/bin/subpod reload", "Environment=PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
		"/home/ann/.local/bin/subpod": {"ExecStart=/home/ann/.local/bin/subpod daemon", "Environment=PATH=/home/ann/.local/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
		`/opt/5% "off"/$x/subpod`:     {`ExecStart="/opt/5%% \"off\"/$x/subpod" daemon`, `Environment="PATH=/opt/5%% \"off\"/$x:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"`},
	} {
		unit, err := Unit(binary, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range append(want, "Type=notify", "Delegate=yes", "WatchdogSec=600", "[Install]") {
			if !strings.Contains(unit, "\n"+line+"\n") {
				t.Errorf("the unit for %s has no line %s:\n%s", binary, line, unit)
			}
		}
		if strings.Contains(unit, "%h") || strings.Contains(unit, "enable-linger") {
			t.Errorf("the unit for %s still tells how to install it:\n%s", binary, unit)
		}
	}
	unit, err := Unit("/usr/bin/subpod", []string{"/home/ann/bin"}, []string{"XDG_DATA_HOME=/my data/5%", "HOME=/home/ann"})
	if err != nil || !strings.Contains(unit, "\nEnvironment=PATH=/home/ann/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\nEnvironment=\"XDG_DATA_HOME=/my data/5%%\"\nEnvironment=HOME=/home/ann\nExecStart=") {
		t.Errorf("with variables: %v\n%s", err, unit)
	}
	if got, err := Unit("/usr/bin/subpod", nil, []string{"HOME=/a\nExecStart=/bin/sh"}); err == nil {
		t.Errorf("a line break was accepted: %s", got)
	}
	for _, bad := range []string{"", "subpod", "/a:b/subpod", "/a\nExecStart=/bin/sh"} {
		if got, err := Unit(bad, nil, nil); err == nil {
			t.Errorf("the path %q was accepted: %s", bad, got)
		}
	}
}

func TestUnitWord(t *testing.T) {
	for word, want := range map[string]string{
		"/usr/bin/subpod": "/usr/bin/subpod",
		"/a$b/${c}":       "/a$b/${c}",
		"/100%/x":         "/100%%/x",
		"/my files/x":     `"/my files/x"`,
		"a\tb;c'd":        "\"a\tb;c'd\"",
		"a\"b\\c\nd":      `"a\"b\\c\nd"`,
	} {
		if got := UnitWord(word); got != want {
			t.Errorf("%q: %s, want %s", word, got, want)
		}
	}
}
