package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestReadBounded: files that the user names are read to a bound, also those that have no
// end.
func TestReadBounded(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	if id, err := readIDFile("--cidfile", file("id", " 0123\n")); err != nil || id != "0123" {
		t.Errorf("%q, %v", id, err)
	}
	small, large := file("small", "A=1\nB=2"), file("large", strings.Repeat("A=1\n", maxLines/4+1))
	if envs, err := environmentOf(false, []string{small}, nil); err != nil || len(envs) != 2 {
		t.Errorf("%v, %v", envs, err)
	}
	for name, err := range map[string]error{
		"--cidfile":     second(readIDFile("--cidfile", "/dev/zero")),
		"--env-file":    second(environmentOf(false, []string{large}, nil)),
		"endless line":  second(environmentOf(false, []string{"/dev/zero"}, nil)),
		"a manifest":    second(readManifests([]string{"/dev/zero"})),
		"a secret":      second(secretText("/dev/zero", false)),
		"no such file":  second(readIDFile("--cidfile", filepath.Join(dir, "nosuch"))),
		"no such lines": second(environmentOf(false, []string{filepath.Join(dir, "nosuch")}, nil)),
	} {
		if err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func second[T any](_ T, err error) error { return err }
