package main

import (
	"bytes"
	"slices"
	"strings"
	"testing"
)

// TestHelp: the help of subpod itself fits a screen, and leaves no command out.
func TestHelp(t *testing.T) {
	root := newRoot()
	var out bytes.Buffer
	root.SetOut(&out)
	root.SetArgs([]string{"--help"})
	if err := root.Execute(); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) > 50 {
		t.Errorf("%d lines", len(lines))
	}
	for _, line := range lines {
		if len(line) > 100 {
			t.Errorf("a line of %d columns: %s", len(line), line)
		}
	}
	words := strings.Fields(out.String())
	for _, c := range root.Commands() {
		if !c.Hidden && c.GroupID != "" && !slices.Contains(words, c.Name()) {
			t.Errorf("%s is not in the help", c.Name())
		}
	}
	for _, name := range everyday {
		if c, _, err := root.Find([]string{name}); err != nil || c.Hidden {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, want := range []string{"Examples:", "Exit codes:", "Images:", "subpod run -it"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
	sub, _, err := root.Find([]string{"run"})
	if err != nil {
		t.Fatal(err)
	}
	out.Reset()
	sub.SetOut(&out)
	if err := sub.Help(); err != nil || !strings.Contains(out.String(), "--publish") {
		t.Errorf("the help of run: %v\n%s", err, out.String())
	}
}
