package main

import "testing"

// TestClientCommands: each is found by its own name, made alone as with all others, and a
// word that is none makes all.
func TestClientCommands(t *testing.T) {
	whole := newRoot()
	for _, c := range clientCommands() {
		alone := newRoot(c.name, "--help")
		one, _, err := alone.Find([]string{c.name})
		all, _, allErr := whole.Find([]string{c.name})
		if err != nil || allErr != nil || one.Name() != c.name || one.Use != all.Use || one.GroupID != all.GroupID {
			t.Errorf("%s: %v, %v", c.name, err, allErr)
			continue
		}
		if one.UsageString() != all.UsageString() {
			t.Errorf("%s: another usage by itself:\n%s", c.name, one.UsageString())
		}
		if len(alone.Commands()) != 1 {
			t.Errorf("%s is made with %d others", c.name, len(alone.Commands())-1)
		}
	}
	for _, args := range [][]string{{"setup"}, {"--run", "ps"}, {"nosuch"}, {"help", "run"}, {"__complete", "r"}} {
		if got, want := len(newRoot(args...).Commands()), len(whole.Commands()); got != want {
			t.Errorf("%q: %d commands, want all %d", args, got, want)
		}
	}
}
